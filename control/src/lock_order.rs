//! Locks of the control plane that report a wrong *order* the first time it is seen, not when it deadlocks.
//!
//! Every lock is of a [`Class`]. In debug and test builds the pairs "this class was taken while that one was held"
//! are remembered for the life of the process, and the first pair that closes a circle panics with the places and
//! backtraces of both sides, whether or not two threads ever met there. What is taken rarely is checked on every run
//! by [`might_take`] where it *could* be taken; what waits for somebody else's work counts as taking what that work
//! runs under ([`Section`]): queued work, and the reclaimer ([`might_reclaim`]). In release builds plain mutexes are
//! left.

use std::{
    backtrace::Backtrace,
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    panic::Location,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use rnic_engine::nonblocking::{CHECKED, might_block};

/// What a lock protects; locks of one class are never nested in each other.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(&'static str);

impl Class {
    /// A class with a unique name, which reports show.
    pub const fn new(name: &'static str) -> Self {
        Class(name)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A class taken while another was held.
struct Nesting {
    outer: &'static Location<'static>,
    inner: &'static Location<'static>,
    backtrace: String,
}

type Graph = BTreeMap<(Class, Class), Nesting>;

/// Every nesting seen so far.
static SEEN: Mutex<Graph> = Mutex::new(BTreeMap::new());

thread_local! {
    static HELD: RefCell<Vec<(Class, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
}

/// Checks the order as if a lock of this class were taken here, and released again. For places that take it on some
/// rare path: the order is then checked on all paths.
#[track_caller]
#[inline]
pub fn might_take(class: Class) {
    might_block();
    if CHECKED {
        check(class, Location::caller());
    }
}

/// What the reclaimer runs under: it drops whatever has waited for a grace period, and a destructor may take locks and
/// wait for queued work.
const RECLAIM: Class = Class::new("reclaim");

/// Declares that the caller may reclaim, whether or not there is something to be freed this time. A lock that is held
/// here and that some destructor takes is reported the first time both have happened, in either order and at any
/// distance.
#[track_caller]
#[inline]
pub fn might_reclaim() {
    might_take(RECLAIM);
}

/// While it lives, what is dropped is dropped by the reclaimer.
#[track_caller]
#[inline]
pub fn reclaiming() -> Section {
    Section::enter(RECLAIM)
}

#[cold]
fn check(class: Class, here: &'static Location<'static>) {
    let found = HELD.with_borrow(|held| held.iter().find_map(|&(outer, at)| nest(outer, at, class, here)));
    match found {
        // A second panic would abort, and hide what the first one says.
        Some(report) if std::thread::panicking() => tracing::error!("{report}"),
        Some(report) => panic!("{report}"),
        None => {}
    }
}

/// Remembers a nesting; the report if it is the first against the order.
fn nest(
    outer: Class,
    outer_at: &'static Location<'static>,
    inner: Class,
    inner_at: &'static Location<'static>,
) -> Option<String> {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.contains_key(&(outer, inner)) {
        return None;
    }
    let here = || format!("{inner} is taken at {inner_at} while {outer} is held since {outer_at}");
    let backtrace = Backtrace::force_capture().to_string();
    if outer == inner {
        return Some(format!(
            "lock order: {}: a class within itself\n{backtrace}",
            here()
        ));
    }
    if let Some(way) = way(&seen, inner, outer) {
        let mut report = format!(
            "lock order: {}, but the other order was seen before\n{backtrace}",
            here()
        );
        for (outer, inner) in way {
            let Nesting {
                outer: outer_at,
                inner: inner_at,
                backtrace,
            } = &seen[&(outer, inner)];
            report += &format!(
                "\n{inner} was taken at {inner_at} while {outer} was held since {outer_at}\n{backtrace}"
            );
        }
        return Some(report);
    }
    let nesting = Nesting {
        outer: outer_at,
        inner: inner_at,
        backtrace,
    };
    seen.insert((outer, inner), nesting);
    None
}

/// The nestings that lead from one class to another.
fn way(seen: &Graph, from: Class, to: Class) -> Option<Vec<(Class, Class)>> {
    // There are few classes and, so far, no circle among them: the search ends.
    seen.keys()
        .filter(|(outer, _)| *outer == from)
        .find_map(|&(outer, inner)| {
            let rest = if inner == to {
                Some(Vec::new())
            } else {
                way(seen, inner, to)
            };
            rest.map(|rest| [vec![(outer, inner)], rest].concat())
        })
}

/// What runs while this lives counts as holding the class: a task that others wait for, say. Whoever waits says
/// [`might_take`].
#[must_use]
pub struct Section {
    class: Class,
    _not_send: PhantomData<*const ()>,
}

impl Section {
    /// Enters.
    #[track_caller]
    pub fn enter(class: Class) -> Self {
        might_block();
        if CHECKED {
            let here = Location::caller();
            check(class, here);
            HELD.with_borrow_mut(|held| held.push((class, here)));
        }
        Section {
            class,
            _not_send: PhantomData,
        }
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        if CHECKED {
            let leave = |held: &mut Vec<(Class, _)>| {
                if let Some(at) = held.iter().rposition(|(class, _)| *class == self.class) {
                    held.remove(at);
                }
            };
            // A thread that is ending has no record any more.
            let _ = HELD.try_with(|held| leave(&mut held.borrow_mut()));
        }
    }
}

/// A mutex of a class. A panic while it was held does not poison it.
pub struct OrderedMutex<T> {
    class: Class,
    inner: Mutex<T>,
}

impl<T> OrderedMutex<T> {
    /// A mutex of this class.
    pub const fn new(class: Class, value: T) -> Self {
        OrderedMutex {
            class,
            inner: Mutex::new(value),
        }
    }

    /// Takes it; may block, so not on a poll core.
    #[track_caller]
    pub fn lock(&self) -> OrderedGuard<'_, T> {
        // First the order: a report is worth more than the deadlock.
        let section = Section::enter(self.class);
        let guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        OrderedGuard { guard, section }
    }
}

/// While it lives, its thread has the mutex.
pub struct OrderedGuard<'a, T> {
    guard: MutexGuard<'a, T>,
    section: Section,
}

impl<T> OrderedGuard<'_, T> {
    /// Lets go of the mutex while `condition` holds; each notification of `changed` has it looked at again. The class
    /// counts as held throughout.
    pub fn wait_while(self, changed: &Condvar, condition: impl FnMut(&mut T) -> bool) -> Self {
        let OrderedGuard { guard, section } = self;
        let guard = changed
            .wait_while(guard, condition)
            .unwrap_or_else(PoisonError::into_inner);
        OrderedGuard { guard, section }
    }
}

impl<T> Deref for OrderedGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for OrderedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// What a violation says.
    fn report(f: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("a violation of the order");
        *panic.downcast::<String>().expect("a report")
    }

    #[test]
    fn an_inversion_that_never_deadlocks_is_reported_with_both_places() {
        let (a, b) = (
            OrderedMutex::new(Class::new("test a1"), ()),
            OrderedMutex::new(Class::new("test b1"), ()),
        );
        {
            let _a = a.lock();
            let _b = b.lock();
        }
        // The same thread, one after the other: nothing could ever deadlock here.
        let text = report(|| {
            let _b = b.lock();
            let _a = a.lock();
        });
        assert!(text.contains("test a1 is taken at"), "{text}");
        assert!(text.contains("test b1 was taken at"), "{text}");
        assert_eq!(
            text.matches("lock_order.rs").count().min(4),
            4,
            "four places: {text}"
        );
        assert!(
            text.matches("an_inversion_that_never_deadlocks").count() >= 2,
            "two backtraces: {text}"
        );
        // Nothing is left held behind.
        drop((a.lock(), ()));
    }

    #[test]
    fn a_circle_of_three_is_found_across_threads() {
        let classes = ["test a2", "test b2", "test c2"].map(Class::new);
        let [a, b, c] = classes.map(|class| OrderedMutex::new(class, ()));
        std::thread::scope(|scope| {
            scope.spawn(|| drop((a.lock(), b.lock())));
        });
        std::thread::scope(|scope| {
            scope.spawn(|| drop((b.lock(), c.lock())));
        });
        let text = report(|| drop((c.lock(), a.lock())));
        assert!(
            text.contains("test b2 was taken") && text.contains("test c2 was taken"),
            "{text}"
        );
    }

    #[test]
    fn what_is_taken_rarely_is_checked_always() {
        let (inner, outer) = (Class::new("test inner3"), Class::new("test outer3"));
        let outer = OrderedMutex::new(outer, ());
        let rarely = |take: bool| {
            might_take(inner);
            if take {
                unreachable!("the rare path");
            }
        };
        {
            let _inner = Section::enter(inner);
            let _outer = outer.lock();
        }
        let _outer = outer.lock();
        assert!(report(|| rarely(false)).contains("test inner3 is taken"));
    }

    #[test]
    fn reclaiming_under_a_lock_that_a_destructor_takes_is_reported_though_nothing_is_reclaimed() {
        struct Takes<'a>(&'a OrderedMutex<()>);
        impl Drop for Takes<'_> {
            fn drop(&mut self) {
                drop(self.0.lock());
            }
        }
        let (a, b) = (
            OrderedMutex::new(Class::new("test a8"), ()),
            OrderedMutex::new(Class::new("test b8"), ()),
        );
        {
            let _reclaiming = reclaiming();
            drop(Takes(&a));
        }
        // Under another lock it is nobody's business.
        let free = b.lock();
        might_reclaim();
        drop(free);
        let _held = a.lock();
        let text = report(might_reclaim);
        assert!(text.contains("reclaim is taken at"), "{text}");
        assert!(text.contains("test a8 was taken at"), "{text}");
    }

    #[test]
    fn a_class_within_itself_is_reported_instead_of_deadlocking() {
        let class = Class::new("test a4");
        let (one, same_class) = (OrderedMutex::new(class, 1), OrderedMutex::new(class, 2));
        let _held = one.lock();
        assert!(report(|| drop(same_class.lock())).contains("within itself"));
        assert!(report(|| drop(one.lock())).contains("within itself"));
    }

    #[test]
    fn one_order_is_never_reported_however_often() {
        let (a, b) = (
            OrderedMutex::new(Class::new("test a5"), 0),
            OrderedMutex::new(Class::new("test b5"), 0),
        );
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let mut a = a.lock();
                        *b.lock() += 1;
                        *a += 1;
                    }
                });
            }
        });
        assert_eq!((*a.lock(), *b.lock()), (400, 400));
    }

    #[test]
    fn what_is_dropped_by_a_panic_breaks_the_order_without_a_second_one() {
        struct Inverts<'a>(&'a OrderedMutex<()>, &'a OrderedMutex<()>);
        impl Drop for Inverts<'_> {
            fn drop(&mut self) {
                drop((self.1.lock(), self.0.lock()));
            }
        }
        let (a, b) = (
            OrderedMutex::new(Class::new("test a7"), ()),
            OrderedMutex::new(Class::new("test b7"), ()),
        );
        drop((a.lock(), b.lock()));
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let _inverts = Inverts(&a, &b);
            panic!("the first one");
        }));
        assert_eq!(
            panic.expect_err("it panics").downcast_ref(),
            Some(&"the first one")
        );
        assert!(report(|| drop((b.lock(), a.lock()))).contains("test a7 is taken"));
    }

    #[test]
    fn a_panic_poisons_nothing() {
        let a = OrderedMutex::new(Class::new("test a6"), 7);
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let _held = a.lock();
            panic!("on purpose");
        }));
        assert_eq!(*a.lock(), 7);
    }
}
