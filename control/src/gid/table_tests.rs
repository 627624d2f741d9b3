use proptest::prelude::*;

use super::*;

fn entry(n: u8) -> GidEntry {
    GidEntry {
        ip: IpAddr::from([10, 0, 0, n]),
        prefix_len: 24,
        vlan: None,
        kernel_answers: false,
    }
}

fn entries(numbers: &[u8]) -> Vec<GidEntry> {
    numbers.iter().map(|n| entry(*n)).collect()
}

/// The last byte of the address at each index, 0 for none.
fn indices(table: &GidTable) -> Vec<u8> {
    let last = |entry: &GidEntry| match entry.ip {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => 0,
    };
    (0..table.len())
        .map(|index| table.get(index).map_or(0, last))
        .collect()
}

#[test]
fn addresses_keep_their_index_and_new_ones_take_the_first_free_one() {
    let mut table = GidTable::new(5);
    table.sync(&entries(&[1, 2, 3]));
    assert_eq!(indices(&table), [1, 2, 3, 0, 0]);
    // In any order, without 2, with 4 and 5.
    let changes = table.sync(&entries(&[5, 3, 4, 1]));
    assert_eq!(indices(&table), [1, 5, 3, 4, 0]);
    assert_eq!(changes.removed, [(1, entry(2))]);
    assert_eq!(changes.added, [(1, entry(5)), (3, entry(4))]);
    assert!(table.sync(&entries(&[1, 3, 4, 5])).is_empty());
}

#[test]
fn the_index_of_a_deleted_address_goes_to_no_other_while_it_is_held() {
    let mut table = GidTable::of(entries(&[1, 2]));
    let holds = [table.hold(0).unwrap(), table.hold(0).unwrap()];
    table.sync(&entries(&[2]));
    assert_eq!(
        (table.get(0), table.hold(0).is_none()),
        (None, true),
        "gone for all that is new"
    );
    assert_eq!(
        table.slot(0).map(|slot| (slot.is_live(), slot.holders())),
        Some((false, 2))
    );
    assert_eq!(table.sync(&entries(&[2, 3])).no_room, [entry(3)]);
    let [first, last] = holds;
    drop(first);
    assert_eq!(table.sync(&entries(&[2, 3])).no_room, [entry(3)]);
    drop(last);
    assert!(table.slot(0).is_none(), "the last holder has freed it");
    assert_eq!(table.sync(&entries(&[2, 3])).added, [(0, entry(3))]);
}

#[test]
fn an_address_that_comes_back_while_it_is_held_finds_its_index_again() {
    let mut table = GidTable::new(3);
    table.sync(&entries(&[1, 2]));
    let hold = table.hold(1).unwrap();
    table.sync(&entries(&[]));
    table.sync(&entries(&[3]));
    assert_eq!(indices(&table), [3, 0, 0]);
    assert_eq!(table.sync(&entries(&[3, 2])).added, [(1, entry(2))]);
    assert_eq!(indices(&table), [3, 2, 0]);
    drop(hold);
    assert_eq!(indices(&table), [3, 2, 0], "alive by itself again");
}

#[test]
fn an_address_that_nobody_held_comes_back_at_the_first_free_index() {
    let mut table = GidTable::new(3);
    table.sync(&entries(&[1, 2]));
    table.sync(&entries(&[]));
    assert_eq!(table.sync(&entries(&[2])).added, [(0, entry(2))]);
}

#[test]
fn another_prefix_or_answerer_is_the_same_gid_and_another_vlan_is_not() {
    let mut table = GidTable::of(entries(&[1]));
    let wider = GidEntry {
        prefix_len: 8,
        ..entry(1)
    };
    let changes = table.sync(&[wider]);
    assert_eq!(
        (changes.updated.as_slice(), changes.is_visible()),
        (&[(0, wider)][..], false)
    );
    assert_eq!(table.get(0), Some(&wider));
    let tagged = GidEntry {
        vlan: Some(5),
        ..wider
    };
    assert!(table.sync(&[tagged]).is_visible());
}

#[test]
fn a_full_table_keeps_what_it_has_and_names_what_does_not_fit() {
    let mut table = GidTable::new(2);
    let changes = table.sync(&entries(&[1, 2, 2, 3]));
    assert_eq!((changes.no_room, indices(&table)), (entries(&[3]), vec![1, 2]));
    assert_eq!(table.sync(&entries(&[3, 1, 2])).no_room, entries(&[3]));
    assert_eq!(GidTable::new(1000).len(), TABLE_MAX);
}

#[derive(Clone, Debug)]
enum Step {
    /// These are the addresses now.
    Sync(Vec<u8>),
    /// A holder of an index comes.
    Hold(usize),
    /// The holder with this number goes.
    Drop(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => proptest::collection::vec(1..8u8, 0..6).prop_map(Step::Sync),
        3 => (0..4usize).prop_map(Step::Hold),
        2 => (0..8usize).prop_map(Step::Drop),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// A model with explicit counts: per index an address, whether it is there, and how many hold it.
    #[test]
    fn the_table_does_what_a_model_with_explicit_counts_does(steps in steps()) {
        let mut table = GidTable::new(4);
        let mut model: Vec<Option<(u8, bool, usize)>> = vec![None; 4];
        let mut holds: Vec<(usize, GidHold)> = Vec::new();
        for step in steps {
            match step {
                Step::Sync(wanted) => {
                    table.sync(&entries(&wanted));
                    for place in &mut model {
                        *place = match *place {
                            Some((n, true, count)) if !wanted.contains(&n) => (count > 0).then_some((n, false, count)),
                            other => other,
                        };
                    }
                    for n in wanted {
                        if let Some((_, live, _)) = model.iter_mut().flatten().find(|(of, ..)| *of == n) {
                            *live = true;
                        } else if let Some(place) = model.iter_mut().find(|place| place.is_none()) {
                            *place = Some((n, true, 0));
                        }
                    }
                }
                Step::Hold(index) => {
                    let hold = table.hold(index);
                    let live = matches!(model[index], Some((_, true, _)));
                    prop_assert_eq!(hold.is_some(), live);
                    if let (Some(hold), Some((_, _, count))) = (hold, &mut model[index]) {
                        *count += 1;
                        holds.push((index, hold));
                    }
                }
                Step::Drop(nth) if nth < holds.len() => {
                    let (index, hold) = holds.swap_remove(nth);
                    drop(hold);
                    let (n, live, count) = model[index].expect("what is held is in use");
                    model[index] = (live || count > 1).then_some((n, live, count - 1));
                }
                Step::Drop(_) => {}
            }
            for (index, place) in model.iter().enumerate() {
                let slot = table.slot(index).map(|slot| (*slot.entry(), slot.is_live(), slot.holders()));
                prop_assert_eq!(slot, place.map(|(n, live, count)| (entry(n), live, count)));
            }
        }
    }
}
