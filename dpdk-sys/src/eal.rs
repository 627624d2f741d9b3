//! The environment abstraction layer: start, stop, logging, and registration of threads.

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int};
use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Errno, Error, check};
use crate::ffi;
use crate::shield::{Affinity, SignalHandlers, SignalMask};

/// EAL can be started once in the life of a process, whether that succeeds or not.
static STARTED: AtomicBool = AtomicBool::new(false);

/// The token, as long as there is one.
static RUNNING: Mutex<Weak<EalInner>> = Mutex::new(Weak::new());

static LOG_LEVEL: AtomicU32 = AtomicU32::new(LogLevel::Notice as u32);

/// Proof that EAL is running. Clones are cheap; ports, pools and registered threads keep one.
#[derive(Clone)]
pub struct Eal {
    inner: Arc<EalInner>,
}

struct EalInner {
    /// Ports held by an `EthDev`. The lock also keeps plugging and claiming apart.
    claimed: Mutex<BTreeSet<u16>>,
}

/// Failure to start or stop EAL.
#[derive(thiserror::Error)]
pub enum EalError {
    /// A second start: DPDK supports one per process.
    #[error("EAL was started in this process before; DPDK supports that once per process")]
    AlreadyStarted,
    /// An argument that cannot be passed on.
    #[error("EAL argument {0:?} cannot be used: it has a NUL byte, or would make EAL exit the process")]
    Argument(String),
    /// The caller's CPU set could not be read, so it could not be restored either.
    #[error("cannot read this thread's CPU set: {0}")]
    Affinity(io::Error),
    /// `rte_eal_init` failed.
    #[error(
        "rte_eal_init failed: {errno}; arguments were: {args}. EAL's log on stderr names the step. \
         Without hugepages use --no-huge -m 300, without PCI devices --no-pci"
    )]
    Init {
        /// The reason given.
        errno: Errno,
        /// The arguments, separated by blanks.
        args: String,
    },
    /// Ports, pools or registered threads are left; the token is handed back.
    #[error("cannot stop EAL: {users} ports, pools or registered threads still use it; drop them first")]
    InUse {
        /// How many there are.
        users: usize,
        /// The token, so that stopping can be tried again.
        eal: Eal,
    },
    /// `rte_eal_cleanup` failed.
    #[error("rte_eal_cleanup failed: {0}")]
    Cleanup(Errno),
}

impl std::fmt::Debug for EalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Eal {
    /// Starts EAL with its command-line arguments (without a program name).
    ///
    /// Takes 100 to 200 ms, most of it clock calibration. The calling thread becomes lcore 0 of
    /// DPDK but keeps its CPU set, its signal mask and the process' signal handlers. DPDK's helper
    /// threads run with signals blocked. Log lines go to stderr at the level of [`set_log_level`].
    ///
    /// # Errors
    /// See [`EalError`]. After any error but [`EalError::Argument`] and [`EalError::Affinity`], the
    /// process cannot try again.
    pub fn init<S: AsRef<str>>(args: &[S]) -> Result<Eal, EalError> {
        let argv = c_arguments(args)?;
        let affinity = Affinity::save().map_err(EalError::Affinity)?;
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(EalError::AlreadyStarted);
        }

        let handlers = SignalHandlers::save();
        let mask = SignalMask::block();
        // SAFETY: may be called at any time; it hands DPDK the C library's stderr.
        unsafe { ffi::dpdk_log_to_stderr() };
        apply_log_level();
        // EAL reorders the array and keeps pointers into it, so it is never freed.
        let argv = argv.leak();
        // SAFETY: argv holds argv.len() - 1 writable pointers to C strings that live for ever,
        // then a null; the swap above makes this the only call in the process.
        let code = unsafe { ffi::rte_eal_init((argv.len() - 1) as c_int, argv.as_mut_ptr()) };
        drop((mask, handlers, affinity));

        if code < 0 {
            let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
            return Err(EalError::Init {
                errno: Errno::from_return(code),
                args: args.join(" "),
            });
        }
        // Once more for the drivers that EAL has just loaded.
        apply_log_level();
        let inner = Arc::new(EalInner {
            claimed: Mutex::new(BTreeSet::new()),
        });
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&inner);
        Ok(Eal { inner })
    }

    /// The token of this process, when EAL is running.
    pub fn running() -> Option<Eal> {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().map(|inner| Eal { inner })
    }

    /// Stops EAL and frees what it holds. Call it from the thread that called [`Eal::init`].
    ///
    /// # Errors
    /// [`EalError::InUse`] while ports, pools, registered threads or other clones are left.
    pub fn cleanup(self) -> Result<(), EalError> {
        if let Err(inner) = Arc::try_unwrap(self.inner) {
            return Err(EalError::InUse {
                users: Arc::strong_count(&inner) - 1,
                eal: Eal { inner },
            });
        }
        // SAFETY: EAL is up, and the token was the last one: no port, pool or thread uses DPDK.
        let code = unsafe { ffi::rte_eal_cleanup() };
        if code < 0 {
            Err(EalError::Cleanup(Errno::from_return(code)))
        } else {
            Ok(())
        }
    }

    /// Registers the calling thread with DPDK, so that it gets a mempool cache of its own; a thread
    /// DPDK does not know allocates from the pool's shared ring, several times slower.
    /// The registration ends when the returned value is dropped, on the same thread.
    ///
    /// # Errors
    /// [`Error::ThreadRegistered`] if the thread has an id already, [`Error::Call`] when ids (128 by
    /// default) have run out.
    pub fn register_thread(&self) -> Result<RegisteredThread, Error> {
        // SAFETY: reads a thread-local integer.
        let lcore = unsafe { ffi::dpdk_lcore_id() };
        if lcore != ffi::DPDK_LCORE_ID_ANY {
            return Err(Error::ThreadRegistered(lcore));
        }
        // SAFETY: EAL is up, and the thread is not registered.
        check("register", "the calling thread with DPDK", unsafe {
            ffi::rte_thread_register()
        })?;
        Ok(RegisteredThread {
            _eal: self.clone(),
            _not_send: PhantomData,
        })
    }

    /// The set of claimed ports, locked.
    pub(crate) fn claimed(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.inner.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread known to DPDK; unregisters when dropped. It cannot leave its thread.
pub struct RegisteredThread {
    _eal: Eal,
    _not_send: PhantomData<*const ()>,
}

impl RegisteredThread {
    /// The id DPDK gave the thread.
    pub fn lcore(&self) -> u32 {
        // SAFETY: reads a thread-local integer.
        unsafe { ffi::dpdk_lcore_id() }
    }
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        // SAFETY: the value is not Send, so this is the thread that was registered; EAL is up,
        // because `_eal` is a live token.
        unsafe { ffi::rte_thread_unregister() };
    }
}

/// How much DPDK logs; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// Errors only.
    Error = 4,
    /// And warnings.
    Warning = 5,
    /// And what is normal but significant; the default.
    Notice = 6,
    /// And information.
    Info = 7,
    /// Everything.
    Debug = 8,
}

/// Sets how much DPDK and its drivers log. Any thread, before or after [`Eal::init`].
pub fn set_log_level(level: LogLevel) {
    LOG_LEVEL.store(level as u32, Ordering::Relaxed);
    apply_log_level();
}

fn apply_log_level() {
    let level = LOG_LEVEL.load(Ordering::Relaxed);
    // SAFETY: both may be called at any time. The pattern is a C string; it matches the components
    // registered so far, each of which has its own level under the global one.
    unsafe {
        ffi::rte_log_set_global_level(level);
        ffi::rte_log_set_level_pattern(c"*".as_ptr(), level);
    }
}

/// Arguments that need neither privilege nor hugepages nor PCI devices: enough for ring, null, memif
/// and vhost ports. 300 MB of memory; lcore 0 is put on a CPU this process may really use.
pub fn unprivileged_args() -> Vec<String> {
    let cpu = Affinity::save().ok().and_then(|set| set.first_cpu()).unwrap_or(0);
    let lcores = format!("--lcores=0@{cpu}");
    [
        lcores.as_str(),
        "--no-pci",
        "--no-huge",
        "-m",
        "300",
        "--no-shconf",
        "--no-telemetry",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The argument vector for EAL, with a program name in front and a null behind. Its strings are
/// leaked: EAL keeps pointers to them, and it runs once.
fn c_arguments<S: AsRef<str>>(args: &[S]) -> Result<Vec<*mut c_char>, EalError> {
    let mut strings = vec![c"rnic".to_owned()];
    for arg in args {
        let arg = arg.as_ref();
        if matches!(arg, "-h" | "--help") {
            return Err(EalError::Argument(arg.to_owned()));
        }
        strings.push(CString::new(arg).map_err(|_| EalError::Argument(arg.to_owned()))?);
    }
    let ends = std::iter::once(std::ptr::null_mut());
    Ok(strings.into_iter().map(CString::into_raw).chain(ends).collect())
}
