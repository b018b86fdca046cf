//! What is planted, drawn from a seed.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// Documents of each collection.
pub(crate) const DOCUMENTS: i32 = 300;
/// Plants at once: servers have little to run on here.
const AT_ONCE: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A document has other content on new.
    Wrong,
    /// New lacks a document.
    Missing,
    /// Only new has a document.
    Extra,
    /// New lacks an index.
    Index,
    /// New takes long to answer.
    Slow,
    /// New answers with errors.
    Errors,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Wrong, Self::Missing, Self::Extra, Self::Index, Self::Slow, Self::Errors];

    pub(crate) fn is_document(self) -> bool {
        matches!(self, Self::Wrong | Self::Missing | Self::Extra)
    }

    /// A server has one fail point of a kind.
    fn fails_commands(self) -> bool {
        matches!(self, Self::Slow | Self::Errors)
    }
}

/// How a document has become wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Value,
    Type,
    FieldLost,
    FieldMore,
    FieldOrder,
}

/// Who is to find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finder {
    Shadow,
    Verification,
}

#[derive(Debug, Clone)]
pub(crate) struct Plant {
    pub(crate) kind: Kind,
    /// Of its collection, and of its migration.
    pub(crate) name: String,
    /// The document, of a plant that has one.
    pub(crate) id: i32,
    pub(crate) change: Change,
    pub(crate) finder: Finder,
    /// The command that is slow or fails.
    pub(crate) command: &'static str,
    /// The error that it fails with.
    pub(crate) code: i32,
    /// Its plan moves writes too, after the reads.
    pub(crate) writes: bool,
    /// The share of reads on new when it is planted.
    pub(crate) percent: u8,
}

/// One of each kind, in any order, then any; the first of them that has a document is left to a verification.
pub(crate) fn draw(seed: u64, count: usize) -> Vec<Plant> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kinds = Kind::ALL.to_vec();
    kinds.shuffle(&mut random);
    while kinds.len() < count {
        kinds.extend(Kind::ALL.choose(&mut random));
    }
    kinds.truncate(count);
    let first = kinds.iter().position(|kind| kind.is_document());
    let changes = [Change::Value, Change::Type, Change::FieldLost, Change::FieldMore, Change::FieldOrder];
    let mut one_of = |many: usize| random.random_range(0..many);
    let plant = |(number, kind)| Plant {
        kind,
        name: format!("p{number}"),
        id: i32::try_from(one_of(DOCUMENTS.unsigned_abs() as usize)).expect("it is small"),
        change: changes[one_of(changes.len())],
        finder: if first == Some(number) || one_of(3) == 0 && Kind::is_document(kind) {
            Finder::Verification
        } else {
            Finder::Shadow
        },
        command: ["find", "distinct", "aggregate"][one_of(3)],
        // UnknownError, Unauthorized, CommandFailed, NotYetInitialized.
        code: [8, 13, 125, 94][one_of(4)],
        writes: one_of(2) == 0,
        percent: [40, 50, 60][one_of(3)],
    };
    kinds.into_iter().enumerate().map(plant).collect()
}

/// Plants that can be tried at once.
pub(crate) fn waves(plants: Vec<Plant>) -> Vec<Vec<Plant>> {
    let mut waves: Vec<Vec<Plant>> = Vec::new();
    for plant in plants {
        let has_room = |wave: &&mut Vec<Plant>| {
            let taken = plant.kind.fails_commands() && wave.iter().any(|other| other.kind.fails_commands());
            wave.len() < AT_ONCE && !taken
        };
        match waves.iter_mut().find(has_room) {
            Some(wave) => wave.push(plant),
            None => waves.push(vec![plant]),
        }
    }
    waves
}

#[test]
fn a_seed_says_all_and_every_kind_is_there() {
    let plants = draw(7, 20);
    assert_eq!(format!("{plants:?}"), format!("{:?}", draw(7, 20)));
    assert_ne!(format!("{plants:?}"), format!("{:?}", draw(8, 20)));
    for kind in Kind::ALL {
        assert!(plants[..6].iter().any(|plant| plant.kind == kind), "{kind:?}");
    }
    let waves = waves(plants);
    assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), 20);
    for wave in waves {
        assert!(wave.iter().filter(|plant| plant.kind.fails_commands()).count() <= 1);
    }
}
