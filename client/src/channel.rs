//! Completion channels.
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rnic_abi::{Empty, HandleArg, Op};

use crate::cq::{Cq, CqInner};
use crate::session::Session;
use crate::wake::{WakeSocket, deadline};
use crate::{Error, Result};

/// Wakes a thread that waits for completions of one or several CQs. Cheap to clone; any thread.
///
/// In an event loop: [`Cq::arm`] each CQ, poll each until it is empty (what came before the arming does not
/// wake), then wait until the descriptor is readable, and call [`CompChannel::next`] with a timeout of zero
/// until it returns `None`. Do not at the same time sleep in [`Cq::wait`] on CQs of the channel: it takes the
/// wakes of all.
#[derive(Clone, Debug)]
pub struct CompChannel(pub(crate) Arc<ChannelInner>);

#[derive(Debug)]
pub(crate) struct ChannelInner {
    pub wake: WakeSocket,
    pub handle: u32,
    session: Arc<Session>,
    cqs: Mutex<Vec<Weak<CqInner>>>,
}

impl CompChannel {
    pub(crate) fn new(session: Arc<Session>, handle: u32, socket: OwnedFd) -> CompChannel {
        CompChannel(Arc::new(ChannelInner {
            wake: WakeSocket::new(socket),
            handle,
            session,
            cqs: Mutex::default(),
        }))
    }

    /// The next CQ that was armed and has fired; `None` when the time is over, no timeout is for ever. The CQ
    /// is then no longer armed.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Option<Cq>> {
        self.0
            .wake
            .wait_for(deadline(timeout), "waiting on a completion channel", || {
                Ok(self.0.fired())
            })
    }

    /// Whether CQs made by `session` can use it.
    pub(crate) fn check_session(&self, session: &Arc<Session>) -> Result<()> {
        if Arc::ptr_eq(&self.0.session, session) {
            Ok(())
        } else {
            Err(Error::InvalidArgument(
                "the completion channel belongs to another context".into(),
            ))
        }
    }

    pub(crate) fn register(&self, cq: &Arc<CqInner>) {
        let mut cqs = self.0.cqs.lock().unwrap_or_else(PoisonError::into_inner);
        cqs.retain(|cq| cq.strong_count() > 0);
        cqs.push(Arc::downgrade(cq));
    }
}

impl ChannelInner {
    fn fired(&self) -> Option<Cq> {
        // The references are dropped outside the lock: one may turn out to be the last of its CQ.
        let cqs: Vec<_> = {
            let cqs = self.cqs.lock().unwrap_or_else(PoisonError::into_inner);
            cqs.iter().filter_map(Weak::upgrade).collect()
        };
        cqs.into_iter().find(|cq| cq.take_fired()).map(Cq)
    }
}

impl AsFd for CompChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        let arg = HandleArg {
            handle: self.handle,
            reserved: 0,
        };
        // Nothing to tell anyone: a daemon that is gone has freed it.
        let _ = self
            .session
            .control
            .request::<Empty>(Op::DestroyCompChannel, &arg);
    }
}
