//! Arenas are taken over, or refused with the place that is wrong.
use std::{fs::File, os::fd::OwnedFd, os::unix::fs::FileExt};

use rnic_transport::{BadField, QpState, record};

use super::*;

record! {
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    struct Sample {
        state: QpState,
        flag: bool,
        number: u64,
    }
}

const ID: ArenaId = ArenaId {
    kind: "samples",
    owner: 3,
    epoch: 0x1234_5678_9abc,
};

fn sample(number: u64) -> Sample {
    Sample {
        state: QpState::Rts,
        flag: true,
        number,
    }
}

fn file(fd: std::os::fd::BorrowedFd<'_>) -> File {
    fd.try_clone_to_owned().unwrap().into()
}

/// A sealed arena's file, with the records 0 to 4 but 2.
fn left() -> OwnedFd {
    let arena = SlotArena::<Sample>::create(ID, 100).unwrap();
    let mut owners: Vec<_> = (0..5).map(|i| arena.put(sample(i)).unwrap()).collect();
    owners.remove(2);
    owners[0].flag = false;
    arena.seal();
    arena.fd().try_clone_to_owned().unwrap()
}

fn open(fd: OwnedFd) -> Result<(SlotArena<Sample>, Vec<ArenaBox<Sample>>), ArenaError> {
    SlotArena::open(ID, fd, 100)
}

#[test]
fn records_are_found_again_with_what_was_stored_last_and_freed_ones_are_not() {
    let (arena, found) = open(left()).unwrap();
    let numbers: Vec<_> = found.iter().map(|r| (r.number, r.flag)).collect();
    assert_eq!(numbers, [(0, false), (1, true), (3, true), (4, true)]);
    arena.unseal();
    assert_eq!(
        arena.put(sample(9)).unwrap().slot(),
        2,
        "the free slot is taken first"
    );
}

#[test]
fn owners_dropped_before_everything_was_taken_over_destroy_nothing() {
    let fd = left();
    drop(open(fd.try_clone().unwrap()).unwrap());
    let (arena, found) = open(fd.try_clone().unwrap()).unwrap();
    assert_eq!(found.len(), 4);
    arena.unseal();
    drop(found);
    assert!(open(fd).unwrap().1.is_empty());
}

#[test]
fn a_slot_is_reused_and_the_limit_holds() {
    let arena = SlotArena::<Sample>::create(ID, 2).unwrap();
    let first = arena.put(sample(1)).unwrap();
    let second = arena.put(sample(2)).unwrap();
    let error = arena.put(sample(3)).unwrap_err();
    assert!(matches!(error, ArenaError::Full { limit: 2, .. }), "{error}");
    drop(first);
    assert_eq!(arena.put(sample(4)).unwrap().number, 4);
    assert_eq!(second.number, 2);
}

#[test]
fn every_flipped_byte_of_the_header_is_found() {
    for at in 0..56 {
        for bit in 0..8 {
            let fd = left();
            let file = file(std::os::fd::AsFd::as_fd(&fd));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
            let error = open(fd)
                .err()
                .unwrap_or_else(|| panic!("byte {at} bit {bit} was not missed"));
            assert!(error.to_string().contains("arena samples.3"), "{error}");
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let len = file(std::os::fd::AsFd::as_fd(&left())).metadata().unwrap().len();
    for cut in [0, 1, 55, 4095, 4096, 4097, len - 1] {
        let fd = left();
        rustix::fs::ftruncate(&fd, cut).unwrap();
        assert!(matches!(open(fd), Err(ArenaError::Truncated { .. })), "{cut}");
    }
}

#[test]
fn bytes_that_are_no_value_name_arena_slot_and_field() {
    let slot = |n: u64| 4096 + n * 64;
    for (at, byte, text) in [
        (slot(3), 7, "arena samples.3, slot 3: its state is"),
        (slot(3) + 8, 7, "arena samples.3, slot 3: the bytes of state"),
        (slot(4) + 9, 2, "arena samples.3, slot 4: the bytes of flag"),
    ] {
        let fd = left();
        file(std::os::fd::AsFd::as_fd(&fd))
            .write_all_at(&[byte], at)
            .unwrap();
        let error = open(fd).err().unwrap().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}

#[test]
fn arenas_of_another_kind_owner_epoch_or_record_are_refused() {
    for (id, field) in [
        (ArenaId { kind: "sample", ..ID }, "kind"),
        (ArenaId { owner: 4, ..ID }, "owner"),
        (ArenaId { epoch: 1, ..ID }, "epoch"),
    ] {
        let error = SlotArena::<Sample>::open(id, left(), 100).err().unwrap();
        assert!(
            matches!(error, ArenaError::Header { field: f, .. } if f == field),
            "{error}"
        );
    }
    let error = SlotArena::<u64>::open(ID, left(), 100).err().unwrap();
    assert!(
        matches!(error, ArenaError::Header { field: "record", .. }),
        "{error}"
    );
    assert!(
        SlotArena::<Sample>::open(ID, left(), 1).is_err(),
        "more records than there may be"
    );
}

#[test]
fn ranges_are_claimed_once_and_only_where_they_lie() {
    let arena = RangeArena::create(ID, 1 << 20).unwrap();
    let mut a = arena.put(10, 1u64).unwrap();
    let b = arena.put(3, sample(5)).unwrap();
    let gone = arena.put(100, 0u8).unwrap();
    a[9] = 77;
    let (at_a, at_b, at_gone) = (a.offset(), b.offset(), gone.offset());
    drop(gone);
    arena.seal();
    let fd = arena.fd().try_clone_to_owned().unwrap();
    drop((a, b, arena));

    let arena = RangeArena::open(ID, fd, 1 << 20).unwrap();
    assert!(arena.claim::<u64>(at_a + 8, 1, 0).is_err(), "not aligned");
    for (offset, len) in [(0, 1), (1 << 19, 1 << 20), (u64::MAX - 63, 1), (at_a, usize::MAX)] {
        let error = arena.claim::<u64>(offset, len, 0).unwrap_err();
        assert!(error.to_string().contains("leaves the arena"), "{error}");
    }
    let a = arena.claim::<u64>(at_a, 10, 0).unwrap();
    assert_eq!((a[0], a[9]), (1, 77));
    let error = arena.claim::<u64>(at_a, 1, 0).unwrap_err();
    assert!(error.to_string().contains("another record"), "{error}");
    let b = arena.claim::<Sample>(at_b, 3, 0).unwrap();
    assert_eq!(b[2], sample(5));
    arena.unseal();
    assert_eq!(
        arena.put(100, 0u8).unwrap().offset(),
        at_gone,
        "what nobody claimed is free"
    );
}

#[test]
fn a_range_of_bytes_that_are_no_records_names_the_slot_that_claims_it() {
    let arena = RangeArena::create(ID, 1 << 20).unwrap();
    let bytes = arena.put(64, 9u8).unwrap();
    arena.seal();
    let at = bytes.offset();
    drop(bytes);
    let arena = RangeArena::open(ID, arena.fd().try_clone_to_owned().unwrap(), 1 << 20).unwrap();
    let error = arena.claim::<Sample>(at, 2, 12).unwrap_err().to_string();
    assert!(error.contains("slot 12: the bytes of state"), "{error}");
}

#[test]
fn a_word_table_finds_what_is_valid_and_what_was_withdrawn_is_gone() {
    let table = WordTable::<Sample>::create(ID, 1000).unwrap();
    table.publish(7, 70, sample(7)).unwrap();
    table.publish(900, 9000, sample(900)).unwrap();
    assert!(table.publish(7, 71, sample(8)).is_err(), "in use");
    assert!(table.publish(1000, 1, sample(8)).is_err(), "no such slot");
    assert!(!table.withdraw(7, 71) && table.withdraw(7, 70) && !table.withdraw(7, 70));
    assert!(!table.withdraw(u32::MAX, 1) && !table.withdraw(999, 1));
    let table = WordTable::<Sample>::open(ID, table.fd().try_clone_to_owned().unwrap(), 1000).unwrap();
    assert_eq!(table.entries().unwrap(), [(900, 9000, sample(900))]);
    let file = file(table.fd());
    file.write_all_at(&[9], 4096 + 900 * 64 + 8).unwrap();
    let error = table.entries().unwrap_err().to_string();
    assert!(error.contains("slot 900: the bytes of state"), "{error}");
}

#[test]
fn a_contradiction_is_told_with_its_place() {
    let error = BadField {
        field: "req.tail",
        value: 7,
        must: "less",
    };
    let error = ArenaError::Contradiction {
        arena: ID,
        slot: 2,
        error,
    };
    assert_eq!(
        error.to_string(),
        "arena samples.3, slot 2: req.tail is 0x7; it must be less"
    );
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "the freed record in slot 1 was written to")]
fn a_write_to_a_freed_record_is_found_out() {
    let arena = SlotArena::<Sample>::create(ID, 100).unwrap();
    let [_first, second] = [1, 2].map(|number| arena.put(sample(number)).unwrap());
    let at = (&raw const *second).cast_mut();
    drop(second);
    // SAFETY: the arena is still mapped; the write is what is to be found.
    unsafe { at.cast::<u8>().write_volatile(1) };
    let _ = arena.put(sample(3));
}
