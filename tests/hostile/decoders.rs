//! Every decoder, over a corpus of captured frames and damage to them. The same targets run under cargo-fuzz.

use std::collections::BTreeSet;

use reshard::wire::compressed::{Compressors, decompress};
use reshard::wire::element::Elements;
use reshard::wire::op_msg::{CHECKSUM_PRESENT, EXHAUST_ALLOWED, MORE_TO_COME, OpMsg};

use super::{Dice, corpus, mutate, seed, targets, twist};

const ROUNDS: usize = 50_000;
/// Those that take long over each, and get a fifth.
const SLOW: [&str; 3] = ["scram", "read", "answer"];

/// What a target panics at is shown with the seed and the bytes.
fn run(name: &str, target: targets::Target, bytes: &[u8], seed: u64) {
    let caught = std::panic::catch_unwind(|| target(bytes));
    assert!(caught.is_ok(), "{name} (RESHARD_SEED={seed}): {}", hex(bytes));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_bytes_are_too_strange_for_any_decoder() {
    let seed = seed();
    let frames: Vec<_> = corpus().into_iter().map(|(_, frame)| frame).collect();
    for (name, target) in targets::ALL {
        let rounds = if SLOW.contains(&name) { ROUNDS / 5 } else { ROUNDS };
        for frame in &frames {
            run(name, target, frame, seed);
            for end in 0..frame.len() {
                run(name, target, &frame[..end], seed);
            }
        }
        let mut dice = Dice(seed);
        for _ in 0..rounds {
            run(name, target, &mutate(&mut dice, &frames), seed);
        }
        for _ in 0..rounds / 20 {
            run(name, target, &twist(&mut dice, &frames), seed);
        }
    }
}

/// Its command or the first field of its reply, its flags, and whether its body is the last of it.
fn kinds_of_message(frame: &[u8]) -> Vec<String> {
    let parts = OpMsg::parse(frame).unwrap();
    let first = Elements::of(&frame[parts.body.clone()]).unwrap().next().unwrap().unwrap();
    let flags =
        [(CHECKSUM_PRESENT, "checksum"), (MORE_TO_COME, "more to come"), (EXHAUST_ALLOWED, "exhaust")];
    let flags = flags.into_iter().filter(|(flag, _)| parts.flags & flag != 0).map(|(_, name)| name);
    let late = parts.sequences.iter().any(|sequence| sequence.documents.end < parts.body.start);
    flags
        .chain(late.then_some("body last"))
        .map(str::to_owned)
        .chain([String::from_utf8_lossy(first.key).into_owned()])
        .collect()
}

#[test]
fn every_frame_of_the_corpus_is_understood() {
    use reshard::wire::header::{Header, OP_COMPRESSED, OP_MSG, OP_QUERY};
    let mut kinds = [0; 3];
    let mut seen = BTreeSet::new();
    for (name, frame) in corpus() {
        let header = Header::parse(&frame).unwrap().unwrap();
        assert_eq!(header.length, frame.len(), "{name}");
        let kind = [OP_MSG, OP_COMPRESSED, OP_QUERY].iter().position(|opcode| *opcode == header.opcode);
        kinds[kind.unwrap_or_else(|| panic!("{name}"))] += 1;
        if header.opcode == OP_MSG {
            reshard::router::Operation::parse(&frame, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
            seen.extend(kinds_of_message(&frame));
        }
        let mut plain = bytes::BytesMut::new();
        if let Ok(Some(compressor)) = decompress(&frame, Compressors::ALL, &mut plain) {
            seen.insert(format!("{compressor:?}"));
        }
    }
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
    let wanted = [
        "Snappy",
        "Zlib",
        "Zstd",
        "body last",
        "checksum",
        "configureFailPoint",
        "cursor",
        "exhaust",
        "more to come",
        "n",
        "saslContinue",
        "saslStart",
    ];
    let missing: Vec<_> = wanted.iter().filter(|kind| !seen.contains(**kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
