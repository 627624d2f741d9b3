//! From packets to requests. Total: whatever came in is a request or a refusal that says what was wrong.

use rnic_abi::{
    ABI_VERSION, AllocMw, CONTROL_MAGIC, CreateAh, CreateCq, CreateQp, CreateSrq, CreateXrcSrq, DeregMr,
    DeviceArg, Empty, GidArg, HandleArg, Hello, MAX_PACKET, McastArg, ModifyCq, ModifyQp, ModifySrq, Op,
    OpenQp, OpenXrcd, PkeyArg, RegMr, RequestHeader, ResizeCq, ResizeCqDone,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::{
    refusal::{Refusal, Verb},
    socket::Packet,
};

/// A request whose header is sound.
#[derive(Debug)]
pub struct Request<'a> {
    /// The header.
    pub header: RequestHeader,
    /// What it asks for.
    pub op: Op,
    /// The body, as long as the header says.
    pub body: &'a [u8],
}

/// A packet that is no request, with its header when there is one to answer to.
#[derive(Debug)]
pub struct Malformed {
    /// The header, if the packet holds one.
    pub header: Option<RequestHeader>,
    /// What is wrong.
    pub refusal: Refusal,
}

/// Checks everything about a packet, which came with `fds` descriptors, that does not depend on the session.
pub fn parse(packet: &Packet, fds: usize) -> Result<Request<'_>, Malformed> {
    let bytes = packet.bytes();
    let Ok((header, body)) = RequestHeader::read_from_prefix(bytes) else {
        let refusal = Refusal::protocol(format!(
            "the packet has {} bytes; a request has at least {}",
            bytes.len(),
            size_of::<RequestHeader>()
        ));
        return Err(Malformed {
            header: None,
            refusal,
        });
    };
    check(packet, &header, body, fds)
        .map(|op| Request { header, op, body })
        .map_err(|refusal| Malformed {
            header: Some(header),
            refusal,
        })
}

fn check(packet: &Packet, header: &RequestHeader, body: &[u8], fds: usize) -> Verb<Op> {
    if header.magic != CONTROL_MAGIC {
        return Err(Refusal::protocol(format!(
            "magic is {:#010x}; it must be {CONTROL_MAGIC:#010x}: is this an rnic client?",
            header.magic
        )));
    }
    if u32::from(header.version) != ABI_VERSION {
        return Err(Refusal::new(
            Errno::PROTONOSUPPORT,
            format!(
                "the client speaks ABI version {}, this rnicd version {ABI_VERSION}; install the client library \
                 that came with the daemon",
                header.version
            ),
        ));
    }
    if packet.truncated {
        return Err(Refusal::new(
            Errno::MSGSIZE,
            format!("the packet is longer than {MAX_PACKET} bytes, which no request is"),
        ));
    }
    if header.body_len as usize != body.len() {
        return Err(Refusal::protocol(format!(
            "body_len is {}, but {} bytes follow the header",
            header.body_len,
            body.len()
        )));
    }
    if header.reserved != 0 {
        return Err(Refusal::protocol(format!(
            "reserved is {:#x}; it must be 0",
            header.reserved
        )));
    }
    let op = Op::from_u16(header.op).ok_or_else(|| {
        Refusal::new(
            Errno::NOSYS,
            format!("op {} is not known to this rnicd", header.op),
        )
    })?;
    let expected = usize::from(matches!(op, Op::RegMr | Op::OpenXrcd));
    if fds != expected {
        return Err(Refusal::invalid(format!(
            "{} came with {fds} descriptors; it takes {expected}",
            op.name()
        )));
    }
    Ok(op)
}

/// A request body.
pub trait Body: FromBytes + KnownLayout + Immutable {
    /// The first reserved field that is not zero.
    fn misused(&self) -> Option<(&'static str, u64)>;
}

macro_rules! bodies {
    ($($name:ident { $($field:ident $(. $sub:ident)?),* })*) => {$(
        impl Body for $name {
            fn misused(&self) -> Option<(&'static str, u64)> {
                let fields: &[(&'static str, u64)] =
                    &[$((stringify!($field $(. $sub)?), u64::from(self.$field $(. $sub)?))),*];
                fields.iter().copied().find(|(_, value)| *value != 0)
            }
        }
    )*};
}

bodies! {
    Empty {}
    DeviceArg { reserved }
    HandleArg { reserved }
    DeregMr {}
    AllocMw {}
    GidArg {}
    RegMr {}
    CreateCq { reserved }
    CreateQp {}
    CreateSrq { reserved }
    ModifySrq {}
    CreateAh {}
    McastArg { reserved }
    ResizeCq {}
    ResizeCqDone {}
    ModifyCq {}
    PkeyArg {}
    OpenXrcd {}
    CreateXrcSrq { reserved }
    OpenQp {}
}

impl Body for Hello {
    fn misused(&self) -> Option<(&'static str, u64)> {
        self.reserved
            .iter()
            .copied()
            .find(|v| *v != 0)
            .map(|v| ("reserved", v))
    }
}

impl Body for ModifyQp {
    fn misused(&self) -> Option<(&'static str, u64)> {
        let draining = self.attrs.sq_draining;
        (draining != 0).then_some(("attrs.sq_draining", draining.into()))
    }
}

impl Request<'_> {
    /// The body as a `T`.
    pub fn body<T: Body>(&self) -> Verb<T> {
        let name = self.op.name();
        let body = T::read_from_bytes(self.body).map_err(|_| {
            let (got, wanted) = (self.body.len(), size_of::<T>());
            Refusal::protocol(format!("{name} has a body of {got} bytes; it must have {wanted}"))
        })?;
        match body.misused() {
            None => Ok(body),
            Some((field, value)) => Err(Refusal::protocol(format!(
                "{name}: {field} is {value:#x}; it must be 0"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::socket::{self, Received};

    fn header(op: u16, body_len: u32) -> RequestHeader {
        let version = ABI_VERSION as u16;
        let (magic, session, sequence) = (CONTROL_MAGIC, 1, 1);
        RequestHeader {
            magic,
            version,
            op,
            session,
            sequence,
            body_len,
            reserved: 0,
        }
    }

    fn packet(bytes: &[u8], fds: usize) -> Packet {
        let (ours, theirs) = socket::pair().unwrap();
        let extra = vec![theirs.as_fd(); fds];
        socket::send(&theirs, bytes, &extra).unwrap();
        let mut packet = Packet::new();
        assert_eq!(socket::receive(&ours, &mut packet), Received::Packet);
        packet
    }

    fn refusal(header: RequestHeader, body: &[u8], fds: usize) -> Refusal {
        let bytes = [header.as_bytes(), body].concat();
        parse(&packet(&bytes, fds), fds).unwrap_err().refusal
    }

    #[test]
    fn each_defect_is_named_with_its_value_and_what_would_be_right() {
        let good = header(Op::AllocPd as u16, 8);
        let body = [0; 8];
        let cases = [
            (
                RequestHeader { magic: 7, ..good },
                "magic is 0x00000007",
                Errno::PROTO,
            ),
            (
                RequestHeader { version: 9, ..good },
                "ABI version 9, this rnicd version 1",
                Errno::PROTONOSUPPORT,
            ),
            (
                RequestHeader { body_len: 9, ..good },
                "body_len is 9, but 8 bytes",
                Errno::PROTO,
            ),
            (
                RequestHeader { reserved: 1, ..good },
                "reserved is 0x1",
                Errno::PROTO,
            ),
            (
                RequestHeader { op: 999, ..good },
                "op 999 is not known",
                Errno::NOSYS,
            ),
        ];
        for (header, text, errno) in cases {
            let refusal = refusal(header, &body, 0);
            assert!(refusal.text().contains(text), "{}", refusal.text());
            assert_eq!(refusal.errno(), errno);
        }
        assert!(
            refusal(good, &body, 2)
                .text()
                .contains("alloc_pd came with 2 descriptors; it takes 0")
        );
        let reg_mr = header(Op::RegMr as u16, 0);
        assert!(refusal(reg_mr, &[], 0).text().contains("it takes 1"));
        assert!(
            parse(&packet(b"short", 0), 0)
                .unwrap_err()
                .refusal
                .text()
                .contains("has 5 bytes")
        );
    }

    #[test]
    fn a_body_of_the_wrong_length_or_with_reserved_bits_is_refused() {
        let bytes = [header(Op::AllocPd as u16, 3).as_bytes(), &[0; 3]].concat();
        let short = packet(&bytes, 0);
        let error = parse(&short, 0).unwrap().body::<DeviceArg>().unwrap_err();
        assert_eq!(error.text(), "alloc_pd has a body of 3 bytes; it must have 8");
        let arg = DeviceArg {
            device: 0,
            reserved: 5,
        };
        let bytes = [header(Op::AllocPd as u16, 8).as_bytes(), arg.as_bytes()].concat();
        let odd = packet(&bytes, 0);
        let error = parse(&odd, 0).unwrap().body::<DeviceArg>().unwrap_err();
        assert_eq!(error.text(), "alloc_pd: reserved is 0x5; it must be 0");
    }

    proptest! {
        #[test]
        fn random_packets_are_parsed_totally(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            with_header in any::<bool>(),
            op in 0u16..30,
            fds in 0usize..3,
        ) {
            let bytes = if with_header {
                [header(op, bytes.len() as u32).as_bytes(), &bytes].concat()
            } else {
                bytes
            };
            let packet = packet(&bytes, fds);
            if let Ok(request) = parse(&packet, packet.fds.len()) {
                let _ = request.body::<Hello>();
                let _ = request.body::<ModifyQp>();
                let _ = request.body::<CreateQp>();
                let _ = request.body::<RegMr>();
            }
        }
    }
}
