//! Completion channels.

use std::{os::fd::OwnedFd, sync::Arc};

use rnic_abi::HandleReply;

use super::{Kind, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    refusal::{Refusal, Verb},
    session::Reply,
    socket,
};

/// A completion channel: a socket by which poll cores wake the client.
#[derive(Debug)]
pub struct Channel {
    /// The daemon's end.
    pub socket: Arc<OwnedFd>,
}

impl Control {
    pub(crate) fn create_comp_channel(&mut self, conn: u32) -> Verb<Outcome> {
        self.allow(conn, Kind::Channel)?;
        let (ours, theirs) = socket::pair()
            .map_err(|errno| Refusal::new(errno, format!("no socket for the completion channel: {errno}")))?;
        let handle = self.take_handle(conn)?;
        let what = What::Channel(Channel {
            socket: Arc::new(ours),
        });
        // A channel is no device's; CQs of all of them may use it.
        self.publish(Object::new(conn, handle, 0, what), None);
        let reply = HandleReply {
            handle: handle.0,
            reserved: 0,
        };
        Ok(Outcome::Done(Reply::with_fds(&reply, vec![Arc::new(theirs)])))
    }
}
