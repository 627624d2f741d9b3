//! Names and addresses: `rnic0`, `0000:01:10.0`, `02:00:00:00:00:01`, `10.0.0.1/24`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ValueError, bad, written_as_string};

/// Name of a port as clients see it: `rnic` and a number from 0 to 255, without leading zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(u8);

impl DeviceName {
    /// The number after `rnic`.
    pub const fn index(self) -> u8 {
        self.0
    }
}

impl FromStr for DeviceName {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.strip_prefix("rnic")
            .and_then(|digits| digits.parse::<u8>().ok())
            .map(Self)
            .filter(|name| name.to_string() == text)
            .ok_or_else(|| bad!("`{text}` is not a device name; names are rnic0, rnic1, … rnic255"))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rnic{}", self.0)
    }
}

written_as_string!(DeviceName, "a device name", example: "rnic0");

/// Address of a PCI function: `domain:bus:device.function`. The domain may be left out and is then 0000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI domain (segment).
    pub domain: u16,
    /// Bus number.
    pub bus: u8,
    /// Device (slot) number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl FromStr for PciAddress {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parse = || {
            let (address, function) = text.rsplit_once('.')?;
            let mut parts = address.rsplit(':');
            let (device, bus) = (parts.next()?, parts.next()?);
            let domain = parts.next().unwrap_or("0000");
            if parts.next().is_some() {
                return None;
            }
            Some(Self {
                domain: hex(domain, 4)?,
                bus: hex(bus, 2)? as u8,
                device: hex(device, 2).filter(|slot| *slot < 32)? as u8,
                function: hex(function, 1).filter(|function| *function < 8)? as u8,
            })
        };
        parse().ok_or_else(|| bad!("`{text}` is not a PCI address"))
    }
}

/// Exactly `digits` hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if well_formed {
        u16::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

written_as_string!(PciAddress, "a PCI address", example: "0000:01:10.0");

/// An Ethernet address of one station: neither multicast nor all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let value = parts.next().and_then(|part| hex(part, 2));
            *byte = value.ok_or_else(|| bad!("`{text}` is not a MAC address"))? as u8;
        }
        if parts.next().is_some() {
            return Err(bad!("`{text}` has more than six bytes"));
        }
        match mac {
            [0, 0, 0, 0, 0, 0] => Err(bad!("`{text}` is all zeros, which is no station's address")),
            [first, ..] if first & 1 == 1 => Err(bad!(
                "`{text}` is a multicast address: the lowest bit of its first byte must be 0"
            )),
            _ => Ok(Self(mac)),
        }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

written_as_string!(MacAddr, "a MAC address", example: "02:00:00:00:00:01");

/// An IP address of a port with the prefix length of its network: `10.0.0.1/24`, `fd00::1/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(IpNet);

impl Address {
    /// The address itself.
    pub fn ip(self) -> IpAddr {
        self.0.addr()
    }
    /// Length of the network prefix in bits, 1 to 32 (IPv4) or 1 to 128 (IPv6).
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }
    /// Whether `ip` is in the same network.
    pub fn is_on_link(self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }
}

impl FromStr for Address {
    type Err = ValueError;
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let Some((ip, prefix)) = text.split_once('/') else {
            return Err(match text.parse::<IpAddr>() {
                Ok(ip) => bad!(
                    "`{text}` has no prefix length; did you mean `{ip}/{}`?",
                    usual_prefix(ip)
                ),
                Err(_) => bad!("`{text}` is not an IP address with a prefix length"),
            });
        };
        let ip: IpAddr = ip.parse().map_err(|_| bad!("`{ip}` is not an IP address"))?;
        let max = if ip.is_ipv4() { 32 } else { 128 };
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix
            .parse::<u8>()
            .ok()
            .filter(|bits| digits && (1..=max).contains(bits));
        let prefix = prefix.ok_or_else(|| bad!("`{text}`: the prefix length must be 1 to {max}"))?;
        station(ip)?;
        let net = IpNet::new_assert(ip, prefix);
        let has_network_address = prefix < if ip.is_ipv4() { 31 } else { 127 };
        if has_network_address && ip == net.network() {
            return Err(bad!(
                "`{text}` is the address of the network, not of a station in it"
            ));
        }
        if has_network_address && ip.is_ipv4() && ip == net.broadcast() {
            return Err(bad!("`{text}` is the broadcast address of its network"));
        }
        Ok(Self(net))
    }
}

const fn usual_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 24 } else { 64 }
}

/// Refuses an address that no station on a link can have.
pub(crate) fn station(ip: IpAddr) -> Result<(), ValueError> {
    let problem = match ip {
        _ if ip.is_unspecified() => "is the unspecified address",
        _ if ip.is_multicast() => "is a multicast address",
        _ if ip.is_loopback() => "is a loopback address, which never leaves a host",
        IpAddr::V4(v4) if v4.is_broadcast() => "is the broadcast address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            "is an IPv4-mapped address; write the IPv4 address"
        }
        _ => return Ok(()),
    };
    Err(bad!("`{ip}` {problem}"))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

written_as_string!(Address, "an IP address with its prefix length", example: "10.0.0.1/24");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_rnic_and_a_number() {
        assert_eq!("rnic7".parse().map(DeviceName::index), Ok(7));
        for text in ["rnic", "rnic256", "rnic07", "rnic+1", "eth0", "RNIC0", "rnic1 "] {
            assert!(text.parse::<DeviceName>().is_err(), "{text}");
        }
    }

    #[test]
    fn pci_addresses_may_leave_out_the_domain() {
        let full: PciAddress = "0000:01:10.0".parse().unwrap();
        assert_eq!("01:10.0".parse(), Ok(full));
        assert_eq!(full.to_string(), "0000:01:10.0");
        for text in [
            "0000:01:20.0",
            "0000:01:10.8",
            "01:10",
            "1:2:3:4.5",
            "0000:01:1.0",
            "+1:10.0",
            "",
            ":.",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mac_address_is_that_of_one_station() {
        assert_eq!("02:00:00:0a:FF:01".parse(), Ok(MacAddr([2, 0, 0, 10, 255, 1])));
        for text in [
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00",
            "02:0:0:0:0:1",
            "g",
            "",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
        assert!(
            "02:00:00:00:00:01:02"
                .parse::<MacAddr>()
                .unwrap_err()
                .to_string()
                .contains("six")
        );
    }

    #[test]
    fn an_address_is_a_station_with_a_prefix() {
        for text in [
            "10.0.0.1/24",
            "fd00::1/64",
            "10.0.0.0/31",
            "10.0.0.1/32",
            "fe80::1/64",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("10.0.0.1", "did you mean `10.0.0.1/24`"),
            ("fd00::1", "did you mean `fd00::1/64`"),
            ("10.0.0.1/33", "1 to 32"),
            ("fd00::1/129", "1 to 128"),
            ("10.0.0.1/+8", "1 to 32"),
            ("10.0.0.256/24", "not an IP address"),
            ("10.0.0.0/24", "address of the network"),
            ("10.0.0.255/24", "broadcast"),
            ("127.0.0.1/8", "loopback"),
            ("224.0.0.1/8", "multicast"),
            ("::ffff:10.0.0.1/96", "IPv4-mapped"),
            ("0.0.0.0/8", "unspecified"),
        ] {
            let message = text.parse::<Address>().unwrap_err().to_string();
            assert!(message.contains(why), "{text}: {message}");
        }
    }
}
