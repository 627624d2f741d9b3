//! Holes in client memory: a SIGBUS on a watched mapping maps a zero page in its place, marks the owner, and the
//! core goes on.
use std::{
    io, mem, ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    },
};

/// Set by the signal handler when memory of its owner was not there.
#[derive(Debug, Default)]
pub struct FaultCell(AtomicBool);

impl FaultCell {
    /// Whether a fault has happened.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Mappings that can be watched at once. The kernel's own limit (`vm.max_map_count`) is of this order.
const RANGES: usize = 65_536;

struct Range {
    /// First address; 0 when the entry is free, 1 while it is being filled.
    start: AtomicUsize,
    end: AtomicUsize,
    cell: AtomicPtr<FaultCell>,
}

static TABLE: [Range; RANGES] = [const {
    Range {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        cell: AtomicPtr::new(ptr::null_mut()),
    }
}; RANGES];
/// Entries that have ever been used: the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

const BUSY: usize = 1;

/// Watches a mapping until dropped, which must happen before it is unmapped or right after.
#[derive(Debug)]
pub(super) struct RangeGuard {
    index: usize,
    _cell: Arc<FaultCell>,
}

/// Watches `len` bytes at `start`; `None` when the table is full.
pub(super) fn watch(start: usize, len: usize, cell: &Arc<FaultCell>) -> Option<RangeGuard> {
    for (index, range) in TABLE.iter().enumerate() {
        if range.start.load(Ordering::Relaxed) == 0
            && range
                .start
                .compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
        {
            range.end.store(start + len, Ordering::Relaxed);
            range.cell.store(Arc::as_ptr(cell).cast_mut(), Ordering::Relaxed);
            USED.fetch_max(index + 1, Ordering::Relaxed);
            range.start.store(start, Ordering::Release);
            return Some(RangeGuard {
                index,
                _cell: cell.clone(),
            });
        }
    }
    None
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        TABLE[self.index].start.store(0, Ordering::Release);
    }
}

/// Installs the handler for the process. Call once at start, before any client memory is mapped.
pub fn install() -> io::Result<()> {
    // SAFETY: the handler only uses atomics and async-signal-safe system calls, and the structure is
    // initialised as sigaction(2) wants it.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo for a handler installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    for range in &TABLE[..USED.load(Ordering::Relaxed).min(RANGES)] {
        let start = range.start.load(Ordering::Acquire);
        if start > BUSY && (start..range.end.load(Ordering::Relaxed)).contains(&address) {
            let cell = range.cell.load(Ordering::Relaxed);
            // SAFETY: the entry is in use, so its guard lives and keeps the cell alive; the faulting thread is
            // inside an access to the mapping, so the guard cannot go before this handler returns.
            unsafe { (*cell).0.store(true, Ordering::Relaxed) };
            if plug(address) {
                return;
            }
        }
    }
    // Not ours: let the default action happen when the instruction is executed again.
    // SAFETY: resetting a disposition is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Puts an anonymous zero page over the hole: 4 KiB first, larger when the mapping is one of huge pages, which the
/// kernel replaces only whole.
fn plug(address: usize) -> bool {
    [4096usize, 2 << 20, 1 << 30].into_iter().any(|page| {
        // SAFETY: the page lies in a mapping of ours that has just faulted; replacing it leaves every pointer
        // into it valid, and mmap is a plain system call.
        let mapped = unsafe {
            libc::mmap(
                (address & !(page - 1)) as *mut libc::c_void,
                page,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        mapped != libc::MAP_FAILED
    })
}
