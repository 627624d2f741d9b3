//! Opening and closing ports takes as long as their drivers like, so it is done on a thread of its own.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use rnic_config::Config;
use rnic_engine::{
    PortInfo,
    port::{OpenPort, PortError},
};
use rustix::event::{EventfdFlags, eventfd};

use crate::registry::{Work, Worker};

/// Opens the ports of a configuration, which are those to be added to a running daemon.
pub type Opener = Arc<dyn Fn(&Config) -> Result<Vec<OpenPort>, PortError> + Send + Sync>;

/// What was done.
pub(crate) enum Plugged {
    /// Ports were opened, or not.
    Opened(Result<Vec<OpenPort>, PortError>),
    /// A port is closed.
    Closed,
}

/// The thread, and the results that wait. Readable when there are some.
pub(crate) struct Plugger {
    opener: Opener,
    sender: Sender<(u64, Plugged)>,
    results: Receiver<(u64, Plugged)>,
    bell: Arc<OwnedFd>,
    // Before the worker: what is queued is dropped there.
    work: Work,
    _worker: Worker,
}

impl Plugger {
    /// Starts the thread.
    pub fn start(opener: Opener) -> std::io::Result<Self> {
        let worker = Worker::start("rnic-ports")?;
        let (sender, results) = channel();
        Ok(Plugger {
            opener,
            sender,
            results,
            bell: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            work: worker.queue().attach(),
            _worker: worker,
        })
    }

    /// Has the ports of `config` opened, on behalf of request `number`.
    pub fn open(&self, number: u64, config: Config) {
        let opener = self.opener.clone();
        self.submit(number, move || Plugged::Opened(opener(&config)));
    }

    /// Has a port closed that no core knows any more.
    pub fn close(&self, number: u64, port: PortInfo) {
        self.submit(number, move || {
            drop(port);
            Plugged::Closed
        });
    }

    /// What was done since the last call, with the number of the request.
    pub fn results(&self) -> Vec<(u64, Plugged)> {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        self.results.try_iter().collect()
    }

    fn submit(&self, number: u64, task: impl FnOnce() -> Plugged + Send + 'static) {
        let (sender, bell) = (self.sender.clone(), self.bell.clone());
        // Refused only when the daemon ends.
        let _ = self.work.submit(move || {
            let _ = sender.send((number, task()));
            let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
        });
    }
}

impl AsFd for Plugger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
