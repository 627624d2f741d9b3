//! Sorting received frames: RoCE for the state machines, the rest for the slow path or for a drop counter.

use crate::{Datagram, Frame, ParseError, Psn};

/// What a received frame is.
#[derive(Copy, Clone, Debug)]
#[allow(clippy::large_enum_variant)] // returned and matched at once, never stored
pub enum Kind<'a> {
    /// A well-formed RoCEv2 frame. Its ICRC is not yet verified.
    Roce(Frame<'a>),
    /// A RoCEv2 datagram of an undefined opcode. Its ICRC is not yet verified.
    ///
    /// A reliable responder whose own class the opcode belongs to ([`crate::Transport::of_opcode`]) answers NAK invalid
    /// request; everyone else drops it.
    ReservedOpcode {
        /// The datagram, for the ICRC and the addresses.
        datagram: Datagram<'a>,
        /// The raw opcode.
        opcode: u8,
        /// Destination QP.
        dest_qpn: u32,
        /// PSN.
        psn: Psn,
    },
    /// Addressed to RoCE's port, or not even a frame, but broken: count and drop, never answer.
    Malformed(ParseError),
    /// Not RoCE: ARP, ND, ICMP and whatever else the slow path may like.
    Other,
}

/// Sorts a frame; see [`Datagram::parse`] for `vlan_in_metadata`.
#[inline(always)] // the result is large, and is to be made where it is wanted
pub fn classify(frame: &[u8], vlan_in_metadata: Option<u16>) -> Kind<'_> {
    let datagram = match Datagram::parse(frame, vlan_in_metadata) {
        Ok(datagram) => datagram,
        Err(error) if error.is_foreign() => return Kind::Other,
        Err(error) => return Kind::Malformed(error),
    };
    match Frame::of_datagram(datagram) {
        Ok(frame) => Kind::Roce(frame),
        Err(ParseError::ReservedOpcode {
            opcode,
            dest_qpn,
            psn,
        }) => Kind::ReservedOpcode {
            datagram,
            opcode,
            dest_qpn,
            psn,
        },
        Err(error) => Kind::Malformed(error),
    }
}
