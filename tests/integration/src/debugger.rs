//! Stopping one thread of the daemon, as a debugger does.
use std::io;
use std::marker::PhantomData;
use std::ptr;

/// A thread that is stopped until this is dropped; the rest of its process runs on. Stays on the thread that made it:
/// the kernel lets no other one let it go.
#[derive(Debug)]
pub struct Stopped {
    tid: i32,
    _here: PhantomData<*const ()>,
}

impl Stopped {
    /// Stops the thread called `name` of process `pid`, a child of this one.
    ///
    /// # Panics
    /// When there is no such thread, or the kernel does not let it be traced.
    pub fn thread(pid: u32, name: &str) -> Stopped {
        let tid = thread_of(pid, name).unwrap_or_else(|| panic!("process {pid} has no thread {name}"));
        let stopped = Stopped {
            tid,
            _here: PhantomData,
        };
        stopped.request(libc::PTRACE_SEIZE).expect("PTRACE_SEIZE");
        stopped.request(libc::PTRACE_INTERRUPT).expect("PTRACE_INTERRUPT");
        // SAFETY: no status is asked for, so nothing is written.
        let waited = unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, tid, "waitpid: {}", io::Error::last_os_error());
        stopped
    }

    fn request(&self, request: libc::c_uint) -> io::Result<()> {
        // SAFETY: these requests take no addresses, and change the traced thread only.
        let result = unsafe {
            libc::ptrace(
                request,
                self.tid,
                ptr::null_mut::<libc::c_void>(),
                ptr::null_mut::<libc::c_void>(),
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A process that has ended meanwhile needs no letting go.
        let _ = self.request(libc::PTRACE_DETACH);
    }
}

fn thread_of(pid: u32, name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (comm.trim_end() == name)
            .then(|| task.file_name().to_str()?.parse().ok())
            .flatten()
    })
}
