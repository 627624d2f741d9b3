//! Sections of code that must not block or touch the heap (DESIGN I1), and the checks that make a mistake
//! impossible to miss.
//!
//! A poll thread enters one section for life. Every function that may block says [`might_block`]. In debug and
//! test builds both that and any heap allocation or release inside a section print a backtrace and abort, the
//! first time the rare path is taken and not when it happens to deadlock. In release builds nothing is left
//! of it.
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::Write,
    marker::PhantomData,
};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether the checks are compiled in.
pub const CHECKED: bool = cfg!(debug_assertions);

/// While it lives, its thread is in a non-blocking section.
#[must_use]
pub struct NonBlocking(PhantomData<*const ()>);

impl NonBlocking {
    /// Begins a section; sections nest.
    pub fn enter() -> Self {
        DEPTH.with(|d| d.set(d.get() + 1));
        NonBlocking(PhantomData)
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        DEPTH.with(|d| d.set(d.get() - 1));
    }
}

/// Whether this thread is in a section.
pub fn in_section() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

/// Declares that the caller may block: takes a lock, makes a blocking system call, waits for a grace period.
#[inline]
#[track_caller]
pub fn might_block() {
    // What a panic drops on its way is no violation, and must not hide the panic.
    if CHECKED && in_section() && !std::thread::panicking() {
        violation("a function that may block was called");
    }
}

/// Leaves the section for good, prints what happened and aborts.
#[cold]
#[track_caller]
fn violation(what: &str) -> ! {
    let depth = DEPTH.with(|d| d.replace(0));
    let thread = std::thread::current();
    // Not `eprintln`, which a test harness keeps for itself until the test ends, and this one does not.
    let _ = writeln!(
        std::io::stderr(),
        "{what} in a non-blocking section of thread {:?} (depth {depth}) at {}\n{}",
        thread.name().unwrap_or("unnamed"),
        std::panic::Location::caller(),
        std::backtrace::Backtrace::force_capture()
    );
    std::process::abort();
}

/// The system allocator, refusing service inside non-blocking sections of debug and test builds. Install it
/// in a binary with `#[global_allocator]`.
pub struct CheckedAllocator;

impl CheckedAllocator {
    #[inline]
    fn check(&self, what: &str) {
        if CHECKED && in_section() && !std::thread::panicking() {
            violation(what);
        }
    }
}

// SAFETY: every call is passed on to `System` unchanged.
unsafe impl GlobalAlloc for CheckedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.check("memory was allocated");
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.check("memory was allocated");
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.check("memory was reallocated");
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        self.check("memory was freed");
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}
