//! Records of two parts are taken over together, and the second part takes memory when it is used.
use std::{
    fs::File,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt},
    },
};

use rnic_transport::record;

use super::*;

record! {
    #[derive(Clone, Debug)]
    struct Beside {
        flags: [bool; 8],
        words: [u64; 1023],
    }
}

const FIRST: ArenaId = ArenaId {
    kind: "firsts",
    owner: 3,
    epoch: 0x1234_5678_9abc,
};
const IDS: [ArenaId; 2] = [
    FIRST,
    ArenaId {
        kind: "seconds",
        ..FIRST
    },
];

type Pairs = PairArena<u64, Beside>;

fn open(files: [OwnedFd; 2]) -> Result<(Pairs, Vec<PairBox<u64, Beside>>), ArenaError> {
    Pairs::open(IDS, files, 100)
}

/// A sealed arena with the records 0 to 4 but 2, of which 3 has used what is beside it.
fn left() -> [OwnedFd; 2] {
    let arena = Pairs::create(IDS, 100).unwrap();
    let mut owners: Vec<_> = (0..5).map(|i| arena.put(i).unwrap()).collect();
    owners.remove(2);
    let (first, second) = owners[2].both();
    assert_eq!((*first, second.words[7], second.flags[0]), (3, 0, false));
    (second.words[7], second.flags[0]) = (9, true);
    arena.seal();
    arena.files().unwrap()
}

#[test]
fn both_parts_are_found_again() {
    let (_arena, found) = open(left()).unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|pair| (**pair, pair.beside().words[7], pair.beside().flags[0]))
        .collect();
    assert_eq!(found, [(0, 0, false), (1, 0, false), (3, 9, true), (4, 0, false)]);
}

#[test]
fn what_is_beside_a_record_takes_no_memory_before_it_is_used_nor_when_it_is_taken_over() {
    let [first, second] = left();
    let taken = |fd: &OwnedFd| File::from(fd.try_clone().unwrap()).metadata().unwrap().blocks() * 512;
    // The header, and the pages of one record.
    assert!(taken(&second) <= 4 * 4096, "{}", taken(&second));
    let before = taken(&second);
    let _opened = open([first, second.try_clone().unwrap()]).unwrap();
    assert_eq!(taken(&second), before);
}

#[test]
fn the_next_owner_of_a_slot_finds_what_the_last_one_has_left() {
    let arena = Pairs::create(IDS, 1).unwrap();
    let mut owner = arena.put(1).unwrap();
    owner.both().1.words[0] = 7;
    drop(owner);
    let owner = arena.put(2).unwrap();
    assert_eq!((*owner, owner.beside().words[0]), (2, 7));
    assert!(matches!(arena.put(3), Err(ArenaError::Full { limit: 1, .. })));
}

#[test]
fn second_parts_that_are_no_values_or_not_there_are_refused() {
    let [first, second] = left();
    let file = File::from(second.try_clone().unwrap());
    let at = |slot: u64| 4096 + slot * size_of::<Beside>() as u64;
    // Nobody owns slot 2.
    file.write_all_at(&[7], at(2)).unwrap();
    let files = || [first.try_clone().unwrap(), second.try_clone().unwrap()];
    assert_eq!(open(files()).unwrap().1.len(), 4);
    file.write_all_at(&[7], at(4)).unwrap();
    let error = open(files()).err().unwrap().to_string();
    assert_eq!(
        error,
        "arena seconds.3, slot 4: the bytes of flags are no value of its type"
    );
    // An arena of fewer second parts than there are records.
    let fewer = Pairs::create(IDS, 100).unwrap();
    let _one = fewer.put(0).unwrap();
    fewer.seal();
    let [_, short] = fewer.files().unwrap();
    let many = SlotArena::<u64>::create(IDS[0], 100).unwrap();
    let _owners: Vec<_> = (0..100).map(|i| many.put(i).unwrap()).collect();
    many.seal();
    let error = open([many.fd().try_clone_to_owned().unwrap(), short])
        .err()
        .unwrap();
    assert!(matches!(error, ArenaError::Range { .. }), "{error}");
}
