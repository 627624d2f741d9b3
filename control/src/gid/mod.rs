//! GIDs: the addresses of a device, by which verbs name the local end of a path. They follow the configuration and,
//! where a port asks for it, the kernel interface behind the port.

mod apply;
mod manager;
mod quiet;
mod table;

pub use apply::Sources;
pub use manager::{Found, GidManager};
pub use quiet::Quiet;
pub use table::{GidHold, GidTable};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{device::Device, neighbour::Target};

/// A question for a neighbour, asked by an address that its device still has: by one that is gone it would tell the
/// link that we have it, and it may be another station's by now. Without any, by none (RFC 5227, 2.1.1; RFC 4861, 4.3).
pub fn asked_by(devices: &[Device], target: &Target) -> Target {
    let gids = devices.get(usize::from(target.port)).map(|device| &device.gids);
    let own = gids.into_iter().flat_map(|gids| gids.iter());
    let fit = own.filter(|entry| entry.vlan == target.vlan && entry.ip.is_ipv4() == target.ip.is_ipv4());
    // Its own choice first, then one of the target's network, then any.
    let best = fit.max_by_key(|entry| (entry.ip == target.from, entry.is_on_link(target.ip)));
    let none = match target.ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    Target {
        from: best.map_or(none, |entry| entry.ip),
        ..*target
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sample;

    #[test]
    fn a_question_is_asked_by_an_address_the_device_has_or_by_none() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let by = |addresses: &[(&str, u8)], from: &str, of: &str| {
            let target = Target {
                port: 0,
                vlan: None,
                ip: ip(of),
                from: ip(from),
            };
            asked_by(&[sample("rnic0", 1, addresses)], &target)
                .from
                .to_string()
        };
        let all = [
            ("10.9.0.1", 24),
            ("10.0.0.1", 24),
            ("10.0.0.2", 24),
            ("fd00::1", 64),
        ];
        assert_eq!(by(&all, "10.0.0.1", "10.0.0.7"), "10.0.0.1", "its own choice");
        assert_eq!(
            by(&all, "10.9.0.1", "10.0.0.7"),
            "10.9.0.1",
            "its own choice, network or not"
        );
        assert_eq!(by(&all, "10.0.0.3", "10.9.0.7"), "10.9.0.1", "one of the network");
        assert_eq!(by(&all, "fd00::9", "fd00::7"), "fd00::1");
        assert_eq!(by(&all[3..], "10.0.0.3", "10.0.0.7"), "0.0.0.0");
        assert_eq!(by(&all[..3], "fd00::1", "fd00::7"), "::");
    }
}
