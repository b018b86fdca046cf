//! Every decoder, over a corpus of captured frames and damage to them. The same targets run under cargo-fuzz.

use super::{Dice, corpus, mutate, seed, targets, twist};

const ROUNDS: usize = 50_000;

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
        for frame in &frames {
            run(name, target, frame, seed);
            for end in 0..frame.len() {
                run(name, target, &frame[..end], seed);
            }
        }
        let mut dice = Dice(seed);
        for _ in 0..ROUNDS {
            run(name, target, &mutate(&mut dice, &frames), seed);
        }
        for _ in 0..ROUNDS / 20 {
            run(name, target, &twist(&mut dice, &frames), seed);
        }
    }
}

#[test]
fn every_frame_of_the_corpus_is_understood() {
    use reshard::wire::header::{Header, OP_COMPRESSED, OP_MSG, OP_QUERY};
    let mut kinds = [0; 3];
    for (name, frame) in corpus() {
        let header = Header::parse(&frame).unwrap().unwrap();
        assert_eq!(header.length, frame.len(), "{name}");
        let kind = [OP_MSG, OP_COMPRESSED, OP_QUERY].iter().position(|opcode| *opcode == header.opcode);
        kinds[kind.unwrap_or_else(|| panic!("{name}"))] += 1;
        if header.opcode == OP_MSG {
            reshard::router::Operation::parse(&frame, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
}
