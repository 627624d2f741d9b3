//! Keeps DPDK's start-up from changing the process around it.

use std::io;
use std::mem::MaybeUninit;

/// Signals that are raised by the faulting instruction itself: blocking them would turn a handled
/// fault into death, and DPDK handles SIGBUS while it touches hugepages.
const SYNCHRONOUS: [libc::c_int; 7] = [
    libc::SIGBUS,
    libc::SIGSEGV,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// While it lives, signals are blocked in the calling thread, so that helper threads which DPDK
/// starts inherit a full mask and never run the process' handlers. Restores the mask when dropped.
pub(crate) struct SignalMask {
    saved: libc::sigset_t,
}

impl SignalMask {
    pub(crate) fn block() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut saved = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises `all` before it is used, and pthread_sigmask, which
        // cannot fail with a valid `how`, initialises `saved`.
        let saved = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for signal in SYNCHRONOUS {
                libc::sigdelset(all.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), saved.as_mut_ptr());
            saved.assume_init()
        };
        SignalMask { saved }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: `saved` is a mask the system gave us; a null third argument is allowed.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.saved, std::ptr::null_mut()) };
    }
}

/// The CPUs the calling thread may run on; put back when dropped.
pub(crate) struct Affinity {
    saved: libc::cpu_set_t,
}

impl Affinity {
    /// Reads the calling thread's CPU set.
    pub(crate) fn save() -> io::Result<Self> {
        let mut saved = MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: the pointer is to a cpu_set_t of the size given; all zeroes is a valid set.
        let (code, saved) = unsafe {
            let code = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), saved.as_mut_ptr());
            (code, saved.assume_init())
        };
        if code == 0 {
            Ok(Affinity { saved })
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// The lowest CPU of the set.
    pub(crate) fn first_cpu(&self) -> Option<usize> {
        let limit = libc::CPU_SETSIZE as usize;
        // SAFETY: CPU_ISSET reads one bit of a valid set, and `cpu` is below the set's size.
        (0..limit).find(|&cpu| unsafe { libc::CPU_ISSET(cpu, &self.saved) })
    }
}

impl Drop for Affinity {
    fn drop(&mut self) {
        // SAFETY: passes a valid set of the size given. Failure leaves the thread pinned where EAL
        // put it, which is slow but harmless.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &self.saved) };
    }
}

/// The process' signal handlers; those that changed are put back when dropped.
pub(crate) struct SignalHandlers {
    saved: Vec<(libc::c_int, libc::sigaction)>,
}

impl SignalHandlers {
    pub(crate) fn save() -> Self {
        let all = 1..=libc::SIGRTMAX();
        SignalHandlers {
            saved: all
                .filter_map(|signal| Some((signal, handler(signal)?)))
                .collect(),
        }
    }
}

impl Drop for SignalHandlers {
    fn drop(&mut self) {
        for (signal, saved) in &self.saved {
            let same = |now: libc::sigaction| {
                now.sa_sigaction == saved.sa_sigaction && now.sa_flags == saved.sa_flags
            };
            if !handler(*signal).is_some_and(same) {
                // SAFETY: `saved` is what the system reported for this signal.
                unsafe { libc::sigaction(*signal, saved, std::ptr::null_mut()) };
            }
        }
    }
}

/// What a signal does now; `None` for signals the C library keeps to itself.
fn handler(signal: libc::c_int) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::uninit();
    // SAFETY: with a null new action this only reads; it fills `action` when it returns 0.
    unsafe {
        (libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0).then(|| action.assume_init())
    }
}
