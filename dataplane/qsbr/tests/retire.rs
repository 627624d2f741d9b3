//! Retire pages and the embedded list, and that neither allocates on the poll core's side.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rnic_qsbr::{EmbeddedLink, EmbeddedList, LinkArena, NoPage, RetirePage, retire_channel};

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Counts this thread's calls of the allocator.
struct Counting;

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Default)]
struct Arena([EmbeddedLink; 8]);

impl LinkArena for Arena {
    fn link(&mut self, slot: u32) -> Option<&mut EmbeddedLink> {
        self.0.get_mut(usize::try_from(slot).ok()?)
    }
}

#[test]
fn a_full_page_is_handed_over_and_comes_back() {
    let (mut cache, mut collector) = retire_channel::<u32>(1, 3);
    for round in 0..5 {
        assert_eq!(cache.push_batch(&[round, round + 1, round + 2]), 3);
        assert_eq!(cache.push(9), Err(NoPage(9)));
        let mut got = Vec::new();
        assert_eq!(collector.collect(|item| got.push(item)), 3);
        assert_eq!(got, [round, round + 1, round + 2]);
    }
}

#[test]
fn a_page_is_handed_over_early_by_flush() {
    let (mut cache, mut collector) = retire_channel::<u32>(2, 100);
    cache.push(1).unwrap();
    assert_eq!(collector.collect(|_| {}), 0);
    cache.flush();
    cache.flush();
    assert_eq!(collector.collect(|item| assert_eq!(item, 1)), 1);
}

#[test]
fn a_batch_is_taken_as_far_as_pages_last() {
    let (mut cache, _collector) = retire_channel::<u32>(2, 2);
    assert_eq!(cache.push_batch(&[0, 1, 2, 3, 4, 5]), 4);
}

#[test]
fn an_empty_cache_leaves_the_object_to_its_own_link_until_pages_return() {
    let (mut cache, mut collector) = retire_channel::<u32>(1, 2);
    let (mut arena, mut list) = (Arena::default(), EmbeddedList::new());
    for slot in 0..5 {
        if let Err(NoPage(slot)) = cache.push(slot) {
            assert!(list.push(&mut arena, slot));
        }
    }
    assert_eq!(list.len(), 3);
    let mut got = Vec::new();
    while !list.is_empty() {
        cache.flush();
        assert_eq!(collector.collect(|slot| got.push(slot)), 2);
        cache.push_list(&mut list, &mut arena, |slot| slot);
    }
    cache.flush();
    collector.collect(|slot| got.push(slot));
    assert_eq!(got, [0, 1, 2, 3, 4]);
    assert!(arena.0.iter().all(|link| !link.is_linked()));
}

#[test]
fn retiring_and_collecting_never_allocate() {
    let (mut cache, mut collector) = retire_channel::<u64>(4, 16);
    let (mut arena, mut list) = (Arena::default(), EmbeddedList::new());
    let before = CALLS.get();
    for item in 0..1000 {
        if cache.push(item).is_err() {
            let _ = list.push(&mut arena, (item % 8) as u32);
            cache.flush();
            collector.collect(|_| {});
            cache.push_list(&mut list, &mut arena, u64::from);
        }
    }
    assert_eq!(CALLS.get(), before);
}

#[test]
fn a_page_refuses_what_exceeds_its_capacity() {
    let mut page = RetirePage::new(2);
    assert_eq!(page.push('a'), Ok(()));
    assert_eq!(page.push('b'), Ok(()));
    assert!(page.is_full());
    assert_eq!(page.push('c'), Err('c'));
    assert_eq!(page.items(), ['a', 'b']);
}

#[test]
fn the_list_is_first_in_first_out_and_linking_twice_is_refused() {
    let (mut arena, mut list) = (Arena::default(), EmbeddedList::new());
    for slot in [5, 0, 7] {
        assert!(list.push(&mut arena, slot));
        assert!(!list.push(&mut arena, slot));
    }
    assert_eq!(list.first(), Some(5));
    for (left, slot) in [(2, 5), (1, 0), (0, 7)] {
        assert_eq!(list.pop(&mut arena), Some(slot));
        assert_eq!(list.len(), left);
    }
    assert_eq!(list.pop(&mut arena), None);
    assert!(list.push(&mut arena, 7));
}

#[test]
fn the_list_refuses_slots_that_do_not_exist() {
    let (mut arena, mut list) = (Arena::default(), EmbeddedList::new());
    for slot in [8, u32::MAX - 1, u32::MAX] {
        assert!(!list.push(&mut arena, slot));
    }
    assert!(list.is_empty());
}

#[test]
fn a_zeroed_link_is_unlinked() {
    assert_eq!(EmbeddedLink::default(), EmbeddedLink::UNLINKED);
    assert!(!EmbeddedLink::UNLINKED.is_linked());
    assert_eq!(size_of::<EmbeddedLink>(), 4);
}
