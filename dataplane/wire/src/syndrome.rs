//! The AETH syndrome: ACK with credits, RNR NAK, NAK (9.7.5.2.2, tables 43 to 46).

/// What an AETH says: one byte, of which bit 7 is reserved, bits 6–5 are the kind and bits 4–0 its value.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Syndrome {
    /// Positive acknowledgement; `credits` is the encoded credit count (5 bits, see [`Credits`]; 31 reports none).
    Ack {
        /// The 5-bit credit code.
        credits: u8,
    },
    /// Receiver not ready; `timer` is the code of the least delay before a retry (see [`crate::RnrTimer`]).
    RnrNak {
        /// The 5-bit timer code.
        timer: u8,
    },
    /// Negative acknowledgement.
    Nak(NakCode),
    /// The whole byte of a reserved form (kind 2, or bit 7 set). Not to be acted upon.
    Reserved(u8),
}

impl Syndrome {
    /// An ACK that reports no credits, what a responder without flow control sends.
    pub const ACK: Syndrome = Syndrome::Ack {
        credits: Credits::NONE,
    };

    /// Decodes the byte; total, and the inverse of [`Syndrome::to_u8`].
    #[inline]
    pub const fn from_u8(byte: u8) -> Self {
        let value = byte & 0x1F;
        match byte >> 5 {
            0 => Syndrome::Ack { credits: value },
            1 => Syndrome::RnrNak { timer: value },
            3 => Syndrome::Nak(NakCode::from_u8(value)),
            _ => Syndrome::Reserved(byte),
        }
    }

    /// Encodes the byte. Values wider than their field are masked to it.
    #[inline]
    pub const fn to_u8(self) -> u8 {
        match self {
            Syndrome::Ack { credits } => credits & 0x1F,
            Syndrome::RnrNak { timer } => 0x20 | timer & 0x1F,
            Syndrome::Nak(code) => 0x60 | code.to_u8(),
            Syndrome::Reserved(byte) => byte,
        }
    }
}

/// Why a responder refused a request (table 46).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum NakCode {
    /// 0: a packet before this one is missing; the requester resends from the PSN in the NAK.
    PsnSequenceError,
    /// 1: malformed or unsupported request.
    InvalidRequest,
    /// 2: key, range or access right violated.
    RemoteAccessError,
    /// 3: the responder could not finish the request for a reason of its own.
    RemoteOperationalError,
    /// 4: RD only.
    InvalidRdRequest,
    /// Any other 5-bit value.
    Reserved(u8),
}

impl NakCode {
    /// Decodes the low five bits of `value`.
    #[inline]
    pub const fn from_u8(value: u8) -> Self {
        match value & 0x1F {
            0 => NakCode::PsnSequenceError,
            1 => NakCode::InvalidRequest,
            2 => NakCode::RemoteAccessError,
            3 => NakCode::RemoteOperationalError,
            4 => NakCode::InvalidRdRequest,
            other => NakCode::Reserved(other),
        }
    }

    /// Encodes to five bits.
    #[inline]
    pub const fn to_u8(self) -> u8 {
        match self {
            NakCode::PsnSequenceError => 0,
            NakCode::InvalidRequest => 1,
            NakCode::RemoteAccessError => 2,
            NakCode::RemoteOperationalError => 3,
            NakCode::InvalidRdRequest => 4,
            NakCode::Reserved(value) => value & 0x1F,
        }
    }
}

/// The credit codes of an ACK (9.7.7.2.1): how many receive WQEs the responder has free.
pub struct Credits;

impl Credits {
    /// The code which reports no credits: the responder does no end-to-end flow control.
    pub const NONE: u8 = 31;

    /// Receive WQEs meant by a code; `None` for [`Credits::NONE`] and for what five bits cannot hold.
    pub const fn decode(code: u8) -> Option<u32> {
        match code {
            0..=3 => Some(code as u32),
            // From 4 on, even codes are powers of two and odd codes lie halfway to the next.
            4..=30 => Some((2 + (code as u32 & 1)) << (code / 2 - 1)),
            _ => None,
        }
    }

    /// The largest code which promises no more than `wqes` receive WQEs.
    pub const fn encode(wqes: u32) -> u8 {
        let mut code = 30;
        while let Some(promised) = Credits::decode(code) {
            if promised <= wqes {
                break;
            }
            code -= 1;
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_syndrome_byte_survives_decoding_and_encoding() {
        for byte in 0..=255 {
            assert_eq!(Syndrome::from_u8(byte).to_u8(), byte);
        }
    }

    #[test]
    fn syndromes_are_those_of_the_table() {
        assert_eq!(Syndrome::from_u8(0x1F), Syndrome::ACK);
        assert_eq!(Syndrome::from_u8(0x20), Syndrome::RnrNak { timer: 0 });
        assert_eq!(Syndrome::from_u8(0x60), Syndrome::Nak(NakCode::PsnSequenceError));
        assert_eq!(Syndrome::from_u8(0x61), Syndrome::Nak(NakCode::InvalidRequest));
        assert_eq!(Syndrome::from_u8(0x62), Syndrome::Nak(NakCode::RemoteAccessError));
        assert_eq!(
            Syndrome::from_u8(0x63),
            Syndrome::Nak(NakCode::RemoteOperationalError)
        );
        assert_eq!(Syndrome::from_u8(0x64), Syndrome::Nak(NakCode::InvalidRdRequest));
        assert_eq!(Syndrome::from_u8(0x65), Syndrome::Nak(NakCode::Reserved(5)));
        assert_eq!(Syndrome::from_u8(0x40), Syndrome::Reserved(0x40));
        assert_eq!(Syndrome::from_u8(0x80), Syndrome::Reserved(0x80));
    }

    #[test]
    fn values_wider_than_five_bits_cannot_change_the_kind() {
        assert_eq!(Syndrome::Ack { credits: 0xFF }.to_u8(), 0x1F);
        assert_eq!(Syndrome::RnrNak { timer: 0xFF }.to_u8(), 0x3F);
        assert_eq!(Syndrome::Nak(NakCode::Reserved(0xFF)).to_u8(), 0x7F);
    }

    #[test]
    fn credit_codes_are_those_of_the_table_and_31_reports_none() {
        let table = [
            0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
        ];
        for (code, wqes) in table.into_iter().enumerate() {
            assert_eq!(Credits::decode(code as u8), Some(wqes));
        }
        assert_eq!(Credits::decode(30), Some(32_768));
        assert_eq!(Credits::decode(31), None);
        assert_eq!(Credits::decode(200), None);
    }

    #[test]
    fn credits_never_promise_more_than_there_are() {
        assert_eq!(Credits::encode(0), 0);
        assert_eq!(Credits::encode(5), 4);
        assert_eq!(Credits::encode(u32::MAX), 30);
        for wqes in 0..5_000 {
            let code = Credits::encode(wqes);
            assert!(Credits::decode(code).is_some_and(|promised| promised <= wqes));
            assert!(Credits::decode(code + 1).is_none_or(|next| next > wqes));
        }
    }
}
