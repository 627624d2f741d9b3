//! Threads that map and unmap clients' memory: populating can take seconds, and the control thread has others to
//! serve.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

use rnic_engine::{
    mem::{ClientMem, FaultCell, MapError},
    nonblocking::might_block,
};
use rustix::event::{EventfdFlags, eventfd};

use crate::lock_order::{Class, OrderedMutex, Section, might_take};

/// Regions up to this size are mapped at once: that takes less than waking a thread.
pub const AT_ONCE: u64 = 256 << 10;
/// Threads: one client's large region does not hold up another's.
const THREADS: usize = 2;

/// Held by the thread that waits for a job or takes one. A leaf.
const QUEUE: Class = Class::new("mapper queue");
/// What jobs run under, and what whoever waits for them takes.
const JOB: Class = Class::new("mapping");

/// Memory to be mapped.
#[derive(Debug)]
pub struct MapRequest {
    /// The client's memfd.
    pub fd: OwnedFd,
    /// Where the region begins in it.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Tells when it was not there.
    pub fault: Arc<FaultCell>,
}

impl MapRequest {
    /// Maps it, here and now.
    pub fn run(&self) -> Result<ClientMem, MapError> {
        ClientMem::map(self.fd.as_fd(), self.offset, self.length, self.fault.clone())
    }
}

enum Job {
    Map(u64, MapRequest),
    Unmap(u64, ClientMem),
}

/// What was done, under the number it was asked for.
#[derive(Debug)]
pub enum Done {
    /// A region was mapped, or not.
    Mapped(Result<ClientMem, MapError>),
    /// A region was unmapped.
    Unmapped,
}

/// The threads, and the results that wait.
pub struct Mapper {
    jobs: Option<Sender<Job>>,
    results: Receiver<(u64, Done)>,
    bell: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
    /// Ours is the last one to be dropped, after the threads were joined: between those only a fence would order the last
    /// drop, and ThreadSanitizer knows no fences.
    _queue: Arc<OrderedMutex<Receiver<Job>>>,
}

impl Mapper {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (jobs, queue) = channel();
        let (done, results) = channel();
        let queue = Arc::new(OrderedMutex::new(QUEUE, queue));
        let mut threads = Vec::new();
        for i in 0..THREADS {
            let (queue, done, bell) = (queue.clone(), done.clone(), bell.clone());
            let thread = std::thread::Builder::new().name(format!("rnic-map-{i}"));
            threads.push(thread.spawn(move || work(&queue, &done, &bell))?);
        }
        Ok(Mapper {
            jobs: Some(jobs),
            results,
            bell,
            threads,
            _queue: queue,
        })
    }

    /// Has a region mapped; the result comes by [`Mapper::results`] under the same number.
    pub fn map(&self, number: u64, request: MapRequest) {
        self.submit(Job::Map(number, request));
    }

    /// Has a region unmapped that nobody uses any more. Small ones are unmapped at once; that of others comes by
    /// [`Mapper::results`] under the same number, which is told by `true`.
    #[must_use]
    pub fn unmap(&self, number: u64, mem: ClientMem) -> bool {
        let later = mem.len() as u64 > AT_ONCE;
        if later {
            self.submit(Job::Unmap(number, mem));
        }
        later
    }

    /// What was done since the last call.
    pub fn results(&self) -> Vec<(u64, Done)> {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        self.results.try_iter().collect()
    }

    fn submit(&self, job: Job) {
        might_block();
        // The threads live as long as the sender does; without them the job is dropped with the queue, which unmaps.
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }
}

fn work(queue: &OrderedMutex<Receiver<Job>>, done: &Sender<(u64, Done)>, bell: &OwnedFd) {
    loop {
        let job = queue.lock().recv();
        let section = Section::enter(JOB);
        let result = match job {
            Ok(Job::Map(number, request)) => (number, Done::Mapped(request.run())),
            Ok(Job::Unmap(number, mem)) => {
                drop(mem);
                (number, Done::Unmapped)
            }
            Err(_) => return,
        };
        drop(section);
        let _ = done.send(result);
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }
}

/// Readable when results wait.
impl AsFd for Mapper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        might_take(JOB);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn regions_are_mapped_elsewhere_and_failures_come_back_too() {
        let mapper = Mapper::start().unwrap();
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, 1 << 20).unwrap();
        let request = |length| MapRequest {
            fd: fd.try_clone().unwrap(),
            offset: 0,
            length,
            fault: Arc::default(),
        };
        mapper.map(1, request(1 << 20));
        fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        mapper.map(2, request(2 << 20));
        mapper.map(3, request(1 << 20));
        let mut results = Vec::new();
        while results.len() < 3 {
            let mut fds = [rustix::event::PollFd::new(&mapper, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            results.extend(mapper.results());
        }
        results.sort_by_key(|(number, _)| *number);
        assert!(matches!(results[1].1, Done::Mapped(Err(MapError::Range { .. }))));
        let Some((_, Done::Mapped(Ok(mem)))) = results.pop() else {
            panic!("the third fits")
        };
        assert!(mapper.unmap(4, mem));
        let mut fds = [rustix::event::PollFd::new(&mapper, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert!(matches!(mapper.results()[..], [(4, Done::Unmapped)]));
    }
}
