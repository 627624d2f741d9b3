//! Protection domains.

use rnic_abi::{DeviceArg, HandleReply};
use rnic_engine::view;

use super::{IdKind, Kind, Object, What};
use crate::{
    control::Control,
    dispatch::Outcome,
    refusal::{Refusal, Verb},
    session::Reply,
};

/// A protection domain. No poll core knows it, only its number.
#[derive(Debug)]
pub struct Pd {
    /// Number, unique in the daemon, generation included: what belonged to an earlier PD of its slot does not fit.
    pub number: u32,
}

impl Control {
    pub(crate) fn alloc_pd(&mut self, conn: u32, arg: &DeviceArg) -> Verb<Outcome> {
        self.device(conn, arg.device)?;
        self.allow(conn, Kind::Pd)?;
        let number = self
            .numbers
            .pds
            .take()
            .ok_or_else(|| Refusal::exhausted("no PD number is free"))?;
        let handle = match self.take_handle(conn) {
            Ok(handle) => handle,
            Err(refusal) => {
                self.numbers.pds.give(number.slot);
                return Err(refusal);
            }
        };
        let number = view::number(number.slot, number.generation);
        let what = What::Pd(Pd { number });
        let object = Object::new(conn, handle, arg.device, what);
        self.publish(object, Some((IdKind::Number(view::Kind::Pd), number)));
        Ok(Outcome::Done(Reply::new(&HandleReply {
            handle: handle.0,
            reserved: 0,
        })))
    }
}
