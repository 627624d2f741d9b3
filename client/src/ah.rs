//! Address handles.
use std::fmt;
use std::sync::Arc;

use rnic_abi::{Av, CreateAh, CreateAhReply, Empty, HandleArg, Op, QueryAhReply, ah_flags};

use crate::{Gid, Pd, Result};

/// The path to a peer: what a GRH says.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AddressVector {
    /// Address of the peer.
    pub dgid: Gid,
    /// Which of our GIDs to send from; of the same address family.
    pub gid_index: u8,
    /// Hop limit; 0 means 64.
    pub hop_limit: u8,
    /// Traffic class: DSCP and ECN.
    pub traffic_class: u8,
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
            flow_label: 0,
        }
    }

    /// From another of our GIDs.
    pub fn gid_index(mut self, index: u8) -> Self {
        self.gid_index = index;
        self
    }

    fn abi(&self) -> Av {
        Av {
            dgid: self.dgid.0,
            flow_label: self.flow_label,
            sgid_index: self.gid_index,
            hop_limit: self.hop_limit,
            traffic_class: self.traffic_class,
            reserved: 0,
        }
    }

    fn from_abi(av: &Av) -> AddressVector {
        AddressVector {
            dgid: Gid(av.dgid),
            gid_index: av.sgid_index,
            hop_limit: av.hop_limit,
            traffic_class: av.traffic_class,
            flow_label: av.flow_label,
        }
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
