//! The view over a received frame: total parsing of the transport packet inside its datagram.

use crate::datagram::{Datagram, clamp};
use crate::ethernet::Link;
use crate::ip::Net;
use crate::{Bth, FrameRepr, Headers, ICRC_LEN, ParseError};
use core::ops::Range;

/// A well-formed RoCEv2 frame: the datagram and its transport headers. The ICRC is not verified by parsing.
#[derive(Copy, Clone, Debug)]
pub struct Frame<'a> {
    datagram: Datagram<'a>,
    headers: Headers,
    /// Offsets of the payload, pad left out, in the frame.
    payload_start: u32,
    payload_end: u32,
}

impl<'a> Frame<'a> {
    /// Parses a frame from its Ethernet header on; see [`Datagram::parse`] for `vlan_in_metadata`.
    ///
    /// # Errors
    /// Those of [`Datagram::parse`] and [`Frame::of_datagram`].
    #[inline]
    pub fn parse(frame: &'a [u8], vlan_in_metadata: Option<u16>) -> Result<Self, ParseError> {
        Frame::of_datagram(Datagram::parse(frame, vlan_in_metadata)?)
    }

    /// Parses the transport packet inside a datagram.
    ///
    /// Whether the payload's length suits the opcode and the path MTU is left to the QP, which knows both.
    ///
    /// # Errors
    /// Those of [`Headers::parse`]; a pad longer than what follows the headers; payload and pad that are no multiple of
    /// four bytes; payload behind an opcode that has none.
    #[inline(always)] // the result is large, and is to be made where it is wanted
    pub fn of_datagram(datagram: Datagram<'a>) -> Result<Self, ParseError> {
        let range = datagram.ib_range();
        let (headers, header_len) = Headers::parse(datagram.ib())?;
        let Bth { opcode, pad, .. } = headers.bth;
        let payload_start = range.start + header_len;
        let padded = range.end.saturating_sub(payload_start);
        if padded < pad as usize {
            return Err(ParseError::PadExceedsPayload {
                pad,
                payload: clamp(padded),
            });
        }
        if padded & 3 != 0 {
            return Err(ParseError::UnalignedPayload {
                padded: clamp(padded),
            });
        }
        if padded != 0 && !opcode.has_payload() {
            return Err(ParseError::UnexpectedPayload {
                opcode,
                len: clamp(padded),
            });
        }
        let payload_end = range.end - pad as usize;
        Ok(Frame {
            datagram,
            headers,
            payload_start: payload_start as u32,
            payload_end: payload_end as u32,
        })
    }

    /// The datagram around the packet: addresses, VLAN, ICRC.
    #[inline]
    pub fn datagram(&self) -> &Datagram<'a> {
        &self.datagram
    }

    /// The Ethernet header.
    #[inline]
    pub fn link(&self) -> Link {
        self.datagram.link()
    }

    /// The network header.
    #[inline]
    pub fn net(&self) -> Net {
        self.datagram.net()
    }

    /// UDP source port.
    #[inline]
    pub fn udp_src_port(&self) -> u16 {
        self.datagram.udp_src_port()
    }

    /// The base transport header.
    #[inline]
    pub fn bth(&self) -> &Bth {
        &self.headers.bth
    }

    /// All transport headers.
    #[inline]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The bytes from the BTH to the last before the ICRC.
    #[inline]
    pub fn ib(&self) -> &'a [u8] {
        self.datagram.ib()
    }

    /// The payload, without pad.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.datagram.bytes.get(self.payload_range()).unwrap_or(&[])
    }

    /// Where in the frame the payload lies, without pad.
    #[inline]
    pub fn payload_range(&self) -> Range<usize> {
        self.payload_start as usize..self.payload_end as usize
    }

    /// The four bytes of the ICRC as they stand on the wire.
    #[inline]
    pub fn icrc(&self) -> [u8; ICRC_LEN] {
        self.datagram.icrc()
    }

    /// What emits the same headers again.
    #[inline]
    pub fn repr(&self) -> FrameRepr {
        FrameRepr {
            link: self.link(),
            net: self.net(),
            udp_src_port: self.udp_src_port(),
            headers: self.headers,
        }
    }
}
