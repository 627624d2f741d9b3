//! What the event loop sleeps on.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rnic_engine::nonblocking::might_block;
use rustix::{
    event::{Timespec, epoll},
    io::Errno,
};

/// Where something has happened.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A signal asks the daemon to stop.
    Signal,
    /// Poll cores have sent messages.
    Engine,
    /// Memory was mapped.
    Mapper,
    /// Ports were opened or closed.
    Plugger,
    /// A client connects.
    Listener,
    /// A connection of a client.
    Client(u32),
    /// `rnicctl` connects.
    AdminListener,
    /// A connection of `rnicctl`.
    Admin(u32),
    /// The kernel tells of changes of its network interfaces.
    Netlink,
    /// Network interfaces were looked at.
    Gids,
}

impl Source {
    const fn encode(self) -> u64 {
        let (tag, id) = match self {
            Source::Signal => (0, 0),
            Source::Engine => (1, 0),
            Source::Mapper => (2, 0),
            Source::Listener => (3, 0),
            Source::Client(id) => (4, id),
            Source::AdminListener => (5, 0),
            Source::Admin(id) => (6, id),
            Source::Netlink => (7, 0),
            Source::Gids => (8, 0),
            Source::Plugger => (9, 0),
        };
        tag << 32 | id as u64
    }

    const fn decode(data: u64) -> Option<Source> {
        let id = data as u32;
        Some(match data >> 32 {
            0 => Source::Signal,
            1 => Source::Engine,
            2 => Source::Mapper,
            3 => Source::Listener,
            4 => Source::Client(id),
            5 => Source::AdminListener,
            6 => Source::Admin(id),
            7 => Source::Netlink,
            8 => Source::Gids,
            9 => Source::Plugger,
            _ => return None,
        })
    }
}

/// What is wanted of a descriptor. That its peer is gone is always told.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing else.
    Nothing,
    /// That it is readable.
    Read,
    /// That it is writable.
    Write,
}

/// A descriptor that is ready.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Which.
    pub source: Source,
    /// The peer is gone.
    pub closed: bool,
}

/// Level-triggered readiness.
#[derive(Debug)]
pub struct Poller(OwnedFd);

/// Descriptors told at once.
const BATCH: usize = 256;

impl Poller {
    /// An empty one.
    pub fn new() -> Result<Self, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Poller)
    }

    /// Watches a descriptor.
    pub fn add(&self, fd: impl AsFd, source: Source, interest: Interest) -> Result<(), Errno> {
        epoll::add(
            &self.0,
            fd,
            epoll::EventData::new_u64(source.encode()),
            flags(interest),
        )
    }

    /// Changes what is wanted of it.
    pub fn change(&self, fd: impl AsFd, source: Source, interest: Interest) {
        // Fails only for a descriptor that was not added, which is then not watched either.
        let _ = epoll::modify(
            &self.0,
            fd,
            epoll::EventData::new_u64(source.encode()),
            flags(interest),
        );
    }

    /// Stops watching it.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Sleeps until something is ready or `timeout` is over; `None` is for ever.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) {
        might_block();
        ready.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); BATCH];
        // The only error left is an interrupted sleep, after which nothing is ready.
        let Ok((events, _)) = epoll::wait(&self.0, &mut events[..], timeout.as_ref()) else {
            return;
        };
        ready.extend(events.iter().filter_map(|event| {
            let (flags, data) = (event.flags, event.data);
            let gone = epoll::EventFlags::HUP | epoll::EventFlags::RDHUP | epoll::EventFlags::ERR;
            Some(Ready {
                source: Source::decode(data.u64())?,
                closed: flags.intersects(gone),
            })
        }));
    }
}

fn flags(interest: Interest) -> epoll::EventFlags {
    epoll::EventFlags::RDHUP
        | match interest {
            Interest::Nothing => epoll::EventFlags::empty(),
            Interest::Read => epoll::EventFlags::IN,
            Interest::Write => epoll::EventFlags::OUT,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{pair, wake};

    #[test]
    fn every_source_survives_its_encoding() {
        let all = [
            Source::Signal,
            Source::Engine,
            Source::Mapper,
            Source::Plugger,
            Source::Listener,
            Source::Client(u32::MAX),
            Source::AdminListener,
            Source::Admin(7),
            Source::Netlink,
            Source::Gids,
        ];
        for source in all {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }

    #[test]
    fn a_busy_clients_requests_are_not_told_but_its_death_is() {
        let (ours, theirs) = pair().unwrap();
        let poller = Poller::new().unwrap();
        poller.add(&ours, Source::Client(1), Interest::Nothing).unwrap();
        let mut ready = Vec::new();
        wake(&theirs);
        poller.wait(Some(Duration::ZERO), &mut ready);
        assert_eq!(ready, []);
        poller.change(&ours, Source::Client(1), Interest::Read);
        poller.wait(Some(Duration::ZERO), &mut ready);
        assert_eq!(
            ready,
            [Ready {
                source: Source::Client(1),
                closed: false
            }]
        );
        poller.change(&ours, Source::Client(1), Interest::Nothing);
        drop(theirs);
        // Not at once, if another test forks just now: until the child's `exec`, it holds a copy.
        poller.wait(None, &mut ready);
        assert_eq!(
            ready,
            [Ready {
                source: Source::Client(1),
                closed: true
            }]
        );
    }
}
