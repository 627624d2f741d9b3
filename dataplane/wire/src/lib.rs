//! RoCEv2 frames: views over bytes, emit, opcode legality and the ICRC.
//!
//! The crate is a pure codec for the hot path: `no_std`, no allocation, no unsafe code, no clock and no state beyond
//! what the caller passes in. Every function may be called from any thread, poll cores included.
//!
//! Everything on the wire is hostile: parsing is total. It never panics and never reads past the slice it was given;
//! whatever is inconsistent is a [`ParseError`] which names the reason, to be counted and dropped.
//!
//! Section and rule numbers refer to the InfiniBand Architecture Specification, volume 1, release 1.5 or later; "A17" is
//! its annex on RoCEv2, "A19" the one on memory placement extensions.

#![no_std]
#![forbid(unsafe_code)]

mod bth;
mod bytes;
mod classify;
mod crc;
mod datagram;
mod error;
mod ethernet;
mod extension;
mod frame;
mod header_set;
mod headers;
mod icrc;
mod ip;
mod mtu;
mod number;
mod opcode;
mod operation;
mod repr;
mod selective;
mod sequence;
mod syndrome;
mod text;
mod timer;
mod udp;
mod whole;

pub use bth::Bth;
pub use classify::{Kind, classify};
pub use crc::{Crc32, Ones, TableCrc};
pub use datagram::Datagram;
pub use error::{EmitError, ParseError};
pub use ethernet::{ETHERNET_LEN, Link, MacAddr, Tpid, VLAN_TAG_LEN, VlanTag, VlanTags};
pub use extension::{Aeth, AtomicAckEth, AtomicEth, Deth, Feth, Reth, XrcEth};
pub use frame::Frame;
pub use header_set::HeaderSet;
pub use headers::Headers;
pub use icrc::{Icrc, verify_icrc, verify_plain};
pub use ip::{Ecn, IPV4_LEN, IPV6_LEN, IpVersion, Ipv4, Ipv6, Net};
pub use mtu::Mtu;
pub use number::{Psn, Qpn};
pub use opcode::{MAX_HEADER_LEN, Opcode, Transport};
pub use operation::Operation;
pub use repr::{FrameRepr, FrameTemplate, MAX_FRAME_HEADER_LEN};
pub use selective::{PsnSet, SELECTIVE_ACK_LEN, SelectiveAck};
pub use sequence::{MessageKind, MessageSequence, SequenceError, follows};
pub use syndrome::{Credits, NakCode, Syndrome};
pub use text::Summary;
pub use timer::{AckTimeout, RnrTimer};
pub use udp::{UDP_LEN, flow_label_of, udp_source_port};
pub use whole::{Extension, Plain, PlainFrame, Whole};

/// UDP destination port of every RoCEv2 packet (A17.3).
pub const ROCE_UDP_PORT: u16 = 4791;

/// Bytes of the invariant CRC which ends every packet.
pub const ICRC_LEN: usize = 4;

/// Pad bytes (0 to 3) which bring a payload of `payload_len` bytes to a multiple of four (9.2.4).
#[inline]
pub const fn pad_len(payload_len: usize) -> u8 {
    (payload_len.wrapping_neg() & 3) as u8
}
