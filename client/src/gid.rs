//! Global identifiers: the addresses of RoCE v2.
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A GID: an IPv6 address, or an IPv4 address mapped into one (IBTA A17.4.1). Serialised as text.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Ipv6Addr", into = "Ipv6Addr")]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The address the GID stands for.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// Whether it is an IPv4 address.
    pub fn is_ipv4(self) -> bool {
        self.ip().is_ipv4()
    }
}

impl From<Ipv6Addr> for Gid {
    fn from(address: Ipv6Addr) -> Gid {
        Gid(address.octets())
    }
}

impl From<Ipv4Addr> for Gid {
    fn from(address: Ipv4Addr) -> Gid {
        address.to_ipv6_mapped().into()
    }
}

impl From<IpAddr> for Gid {
    fn from(address: IpAddr) -> Gid {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Gid> for Ipv6Addr {
    fn from(gid: Gid) -> Ipv6Addr {
        gid.0.into()
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

/// An entry of a port's GID table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Where it stands in the table.
    pub index: u8,
    /// The GID.
    pub gid: Gid,
    /// VLAN the address belongs to.
    pub vlan: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_exchanged_as_text() {
        let gid = Gid::from(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(serde_json::to_string(&gid).unwrap(), r#""::ffff:10.0.0.1""#);
        assert_eq!(serde_json::from_str::<Gid>(r#""::ffff:10.0.0.1""#).unwrap(), gid);
        assert!(gid.is_ipv4());
    }
}
