//! A thread that serves a work queue.

use std::{io, thread::JoinHandle};

use super::WorkQueue;

/// A [`WorkQueue`] with its thread, which ends when this is dropped, by a task of its own or by others. What is queued then
/// is dropped.
pub struct Worker {
    queue: WorkQueue,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of this name.
    pub fn start(name: &str) -> io::Result<Self> {
        let queue = WorkQueue::new();
        let served = queue.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || served.run())?;
        Ok(Worker {
            queue,
            thread: Some(thread),
        })
    }

    /// Its queue.
    pub fn queue(&self) -> &WorkQueue {
        &self.queue
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.stop();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            WorkQueue::might_wait();
            // If it has panicked, it said so.
            let _ = thread.join();
        }
    }
}
