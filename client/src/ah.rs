//! Address handles.
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rnic_abi::{Av, CreateAh, CreateAhReply, Empty, HandleArg, Op, QueryAhReply, ah_flags};

use crate::{Context, Error, Gid, Pd, Result};

/// The path to a peer: what a GRH says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AddressVector {
    /// Address of the peer.
    pub dgid: Gid,
    /// Which of our GIDs to send from; of the same address family.
    pub gid_index: u8,
    /// Hop limit; 0 means 64.
    pub hop_limit: u8,
    /// Traffic class: DSCP in the upper six bits. The lower two, ECN, are congestion control's: what is given here has no
    /// effect.
    pub traffic_class: u8,
    /// Service level, 0 to 7: the priority in the VLAN tag, where our GID has a VLAN.
    pub sl: u8,
    /// Flow label, 20 bits; it also chooses the UDP source port.
    pub flow_label: u32,
}

impl AddressVector {
    /// To a peer from our first GID, with the defaults for the rest.
    pub fn to(dgid: impl Into<Gid>) -> AddressVector {
        AddressVector {
            dgid: dgid.into(),
            gid_index: 0,
            hop_limit: 0,
            traffic_class: 0,
            sl: 0,
            flow_label: 0,
        }
    }

    /// From another of our GIDs.
    pub fn gid_index(mut self, index: u8) -> Self {
        self.gid_index = index;
        self
    }

    /// Back to the sender of a datagram, from the address it was sent to: `grh` are the first 40 bytes of what was received
    /// ([`Completion::has_grh`](crate::Completion::has_grh)).
    pub fn from_grh(context: &Context, grh: &[u8; 40]) -> Result<AddressVector> {
        let path = GrhPath::parse(grh)
            .ok_or_else(|| Error::InvalidArgument("these are not the first 40 bytes of a datagram".into()))?;
        let ours = context.gids()?.into_iter().find(|entry| entry.gid == path.local);
        let Some(ours) = ours else {
            let message = format!("{} has no GID {} (any more)", context.attr().name, path.local);
            return Err(Error::InvalidArgument(message));
        };
        Ok(AddressVector {
            dgid: path.remote,
            gid_index: ours.index,
            hop_limit: 0,
            traffic_class: path.traffic_class,
            sl: 0,
            flow_label: path.flow_label,
        })
    }

    pub(crate) fn abi(&self) -> Av {
        Av {
            dgid: self.dgid.0,
            flow_label: self.flow_label,
            sgid_index: self.gid_index,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            sl: self.sl,
        }
    }

    pub(crate) fn from_abi(av: &Av) -> AddressVector {
        AddressVector {
            dgid: Gid(av.dgid),
            gid_index: av.sgid_index,
            hop_limit: av.hop_limit,
            traffic_class: av.traffic_class,
            sl: av.sl,
            flow_label: av.flow_label,
        }
    }
}

/// What a GRH area says of the way a datagram came.
#[derive(Debug, PartialEq, Eq)]
struct GrhPath {
    local: Gid,
    remote: Gid,
    traffic_class: u8,
    flow_label: u32,
}

impl GrhPath {
    /// Reads an IPv6 header, or an IPv4 header in the last 20 bytes.
    fn parse(grh: &[u8; 40]) -> Option<GrhPath> {
        let (first, v4) = (grh[0] >> 4, &grh[20..]);
        let word = |at: usize| u32::from_be_bytes([grh[at], grh[at + 1], grh[at + 2], grh[at + 3]]);
        if first == 6 {
            let gid = |at: usize| grh[at..at + 16].try_into().ok().map(Gid);
            return Some(GrhPath {
                local: gid(24)?,
                remote: gid(8)?,
                traffic_class: (word(0) >> 20) as u8,
                flow_label: word(0) & 0xF_FFFF,
            });
        }
        let gid = |at: usize| Gid::from(Ipv4Addr::from(word(20 + at)));
        (first == 0 && v4[0] == 0x45).then(|| GrhPath {
            local: gid(16),
            remote: gid(12),
            traffic_class: v4[1],
            flow_label: 0,
        })
    }
}

/// An address handle: a path to a peer that the daemon has resolved down to the MAC address, and follows when that
/// changes. Datagrams are sent over it. Cheap to clone; any thread. Destroyed with its last clone.
#[derive(Clone, Debug)]
pub struct Ah(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pd: Pd,
    handle: u32,
    number: u32,
}

/// An address handle as the daemon has it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AhAttr {
    /// The path it was made with.
    pub vector: AddressVector,
    /// MAC address of the next hop; `None` when the device is gone.
    pub next_hop: Option<MacAddr>,
}

/// A MAC address.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Ah {
    pub(crate) fn create(pd: &Pd, vector: &AddressVector, flags: u32) -> Result<Ah> {
        let body = CreateAh {
            pd: pd.0.handle,
            flags,
            ah_attr: vector.abi(),
        };
        let CreateAhReply { handle, ah } = pd.context().session.control.request(Op::CreateAh, &body)?;
        Ok(Ah(Arc::new(Inner {
            pd: pd.clone(),
            handle,
            number: ah,
        })))
    }

    pub(crate) const AT_ONCE: u32 = ah_flags::NON_BLOCKING;

    /// The protection domain it was made in.
    pub fn pd(&self) -> &Pd {
        &self.0.pd
    }

    /// Its number in work requests, 24 bits.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// What the daemon knows of it.
    pub fn query(&self) -> Result<AhAttr> {
        let arg = HandleArg {
            handle: self.0.handle,
            reserved: 0,
        };
        let reply: QueryAhReply = self.pd().context().session.control.request(Op::QueryAh, &arg)?;
        Ok(AhAttr {
            vector: AddressVector::from_abi(&reply.ah_attr),
            next_hop: (reply.next_hop != [0; 6]).then_some(MacAddr(reply.next_hop)),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let arg = HandleArg {
            handle: self.handle,
            reserved: 0,
        };
        let control = &self.pd.context().session.control;
        // Nothing to tell anyone: a daemon that is gone has freed it.
        let _ = control.request::<Empty>(Op::DestroyAh, &arg);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_is_read_from_either_ip_header() {
        let mut grh = [0; 40];
        grh[20..24].copy_from_slice(&[0x45, 0x68, 0, 60]);
        grh[32..].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        let path = GrhPath::parse(&grh).unwrap();
        let gid = |last| Gid::from(Ipv4Addr::new(10, 0, 0, last));
        assert_eq!(
            (path.local, path.remote, path.traffic_class),
            (gid(1), gid(2), 0x68)
        );

        let mut grh = [7; 40];
        grh[..4].copy_from_slice(&[0x66, 0x81, 0x23, 0x45]);
        grh[8..24].fill(2);
        grh[24..].fill(1);
        let path = GrhPath::parse(&grh).unwrap();
        assert_eq!((path.local, path.remote), (Gid([1; 16]), Gid([2; 16])));
        assert_eq!((path.traffic_class, path.flow_label), (0x68, 0x1_2345));
        assert_eq!(GrhPath::parse(&[0x7b; 40]), None);
    }
}
