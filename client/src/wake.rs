//! Sleeping until the daemon wakes us, by several threads on one socket.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::{Error, Result};

/// Our end of a socket pair on which the daemon sends a small message a wake.
///
/// A message says only "look again", and whoever takes it may not be the one it was meant for. So one thread at
/// a time, the leader, sleeps on the socket; the others sleep on the condition variable, and each message makes
/// all of them look again.
#[derive(Debug)]
pub(crate) struct WakeSocket {
    socket: OwnedFd,
    state: Mutex<State>,
    turn: Condvar,
}

#[derive(Debug)]
struct State {
    has_leader: bool,
    /// Messages taken.
    wakes: u64,
}

impl WakeSocket {
    pub fn new(socket: OwnedFd) -> WakeSocket {
        WakeSocket {
            socket,
            state: Mutex::new(State {
                has_leader: false,
                wakes: 0,
            }),
            turn: Condvar::new(),
        }
    }

    /// Returns what `check` finds, sleeping between its calls; `None` when the time is over. No wake is lost
    /// provided that any event after a fruitless `check` causes a message.
    pub fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        during: &'static str,
        mut check: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        loop {
            let seen = self.lock().wakes;
            if let Some(found) = check()? {
                return Ok(Some(found));
            }
            let mut state = self.lock();
            while state.wakes == seen && state.has_leader {
                let Some(left) = remaining(deadline) else {
                    return Ok(None);
                };
                let left = left.unwrap_or(Duration::from_secs(3600));
                state = self
                    .turn
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            if state.wakes != seen {
                continue;
            }
            state.has_leader = true;
            drop(state);
            let taken = take(self.socket.as_fd(), deadline, during);
            let mut state = self.lock();
            state.has_leader = false;
            state.wakes += u64::from(matches!(taken, Ok(true)));
            drop(state);
            self.turn.notify_all();
            if !taken? {
                return check();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for WakeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The instant at which a timeout ends; `None` is never.
pub(crate) fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// `None` when the time is over, `Some(None)` when there is no limit.
fn remaining(deadline: Option<Instant>) -> Option<Option<Duration>> {
    match deadline {
        None => Some(None),
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(Some(left))
        }
    }
}

/// Takes one message, waiting for it until the deadline; tells whether there was one. Looks once even when the
/// deadline has passed.
fn take(socket: BorrowedFd<'_>, deadline: Option<Instant>, during: &'static str) -> Result<bool> {
    let failed = |errno: Errno| Error::Io {
        what: during,
        source: errno.into(),
    };
    loop {
        match recv(socket, &mut [0u8; 8], RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => return Err(Error::Disconnected { during }),
            Ok(_) => return Ok(true),
            Err(Errno::AGAIN) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        let timeout = match remaining(deadline) {
            None => return Ok(false),
            Some(None) => None,
            // A time too long for the kernel is no limit.
            Some(Some(left)) => Timespec::try_from(left).ok(),
        };
        match poll(
            &mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)],
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    use super::*;

    fn pair() -> (WakeSocket, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (WakeSocket::new(ours), theirs)
    }

    #[test]
    fn one_message_wakes_every_thread_to_look() {
        let (wake, daemon) = pair();
        let ready = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..3)
                .map(|i| {
                    let (wake, ready) = (&wake, &ready);
                    scope.spawn(move || {
                        let check = || Ok((ready.load(Ordering::Acquire) & (1 << i) != 0).then_some(i));
                        wake.wait_for(None, "test", check).unwrap()
                    })
                })
                .collect();
            for i in 0..3 {
                ready.fetch_or(1 << i, Ordering::Release);
                send(&daemon, &[1], SendFlags::NOSIGNAL).unwrap();
            }
            for (i, waiter) in waiters.into_iter().enumerate() {
                assert_eq!(waiter.join().unwrap(), Some(i));
            }
        });
    }

    #[test]
    fn a_timeout_of_zero_looks_and_does_not_sleep() {
        let (wake, _daemon) = pair();
        let none = wake.wait_for(deadline(Some(Duration::ZERO)), "test", || Ok(None::<()>));
        assert!(matches!(none, Ok(None)));
    }

    #[test]
    fn a_closed_socket_is_an_error() {
        let (wake, daemon) = pair();
        drop(daemon);
        let gone = wake.wait_for(None, "test", || Ok(None::<()>));
        assert!(matches!(gone, Err(Error::Disconnected { during: "test" })));
    }
}
