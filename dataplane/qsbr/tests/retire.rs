//! Retire pages and the embedded list, and that neither allocates on the poll core's side.
#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rnic_qsbr::{EmbeddedList, Linked, NoPage, RetirePage, Retirer, retire_channel};

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

/// What a poll core owns: a box, with room for the next.
#[derive(Debug)]
struct Owned(Box<Node>);

#[derive(Debug)]
struct Node {
    value: u32,
    next: Option<Owned>,
}

impl Owned {
    fn new(value: u32) -> Self {
        Self(Box::new(Node { value, next: None }))
    }
}

impl Linked for Owned {
    fn next(&mut self) -> &mut Option<Self> {
        &mut self.0.next
    }
}

#[test]
fn a_full_page_is_handed_over_and_comes_back() {
    let (mut cache, mut collector) = retire_channel::<u32>(1, 3);
    for round in 0..5 {
        for item in round..round + 3 {
            assert_eq!(cache.push(item), Ok(()));
        }
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
    assert!(cache.flush());
    assert!(!cache.flush(), "an empty page is not sent");
    assert_eq!(collector.collect(|item| assert_eq!(item, 1)), 1);
}

#[test]
fn without_a_page_objects_wait_on_their_own_links_and_all_arrive_once() {
    let (cache, mut collector) = retire_channel::<Owned>(1, 2);
    let mut retirer = Retirer::from(cache);
    let paged = (0..5).filter(|n| retirer.retire(Owned::new(*n))).count();
    assert_eq!((paged, retirer.waiting()), (2, 3));
    assert!(!retirer.flush(), "the only page is under way");
    let mut got = Vec::new();
    while got.len() < 5 {
        let taken = collector.collect(|mut item| {
            assert!(item.next().is_none(), "it came with another one on its link");
            got.push(item.0.value);
        });
        assert!(taken <= 2);
        retirer.flush();
    }
    assert_eq!(retirer.waiting(), 0);
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3, 4]);
}

#[test]
fn retiring_and_collecting_never_touch_the_heap() {
    let (cache, mut collector) = retire_channel::<Owned>(4, 16);
    let mut retirer = Retirer::from(cache);
    let mut items: Vec<_> = (0..1000).map(Owned::new).collect();
    let mut got = Vec::with_capacity(items.len());
    let before = CALLS.get();
    for round in 0..4 {
        items.drain(..250).for_each(|item| _ = retirer.retire(item));
        assert!(round > 0 || retirer.waiting() == 250 - 64);
        retirer.flush();
        collector.collect(|item| got.push(item));
    }
    while retirer.waiting() > 0 || retirer.flush() {
        retirer.flush();
        collector.collect(|item| got.push(item));
    }
    collector.collect(|item| got.push(item));
    assert_eq!(CALLS.get(), before);
    assert_eq!(got.len(), 1000);
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
fn a_long_list_is_dropped_without_recursion() {
    const LENGTH: u32 = if cfg!(miri) { 10_000 } else { 1_000_000 };
    let mut list = EmbeddedList::new();
    (0..LENGTH).for_each(|n| list.push(Owned::new(n)));
    assert_eq!(list.len(), LENGTH as usize);
    assert_eq!(list.pop().map(|item| item.0.value), Some(LENGTH - 1));
    drop(list);
}
