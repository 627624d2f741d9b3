//! Address handles as an application sees them.
mod common;
mod mock;

use std::net::{IpAddr, Ipv4Addr};

use common::Daemon;
use rnic::{AddressVector, Context, Gid};

fn vector(last: u8) -> AddressVector {
    AddressVector::to(Gid::from(Ipv4Addr::new(10, 0, 0, last)))
}

#[test]
fn an_address_handle_keeps_its_path_and_its_pd_and_goes_with_its_last_clone() {
    let daemon = Daemon::start();
    let context = Context::open(&daemon.socket, "rnic0").unwrap();
    let pd = context.alloc_pd().unwrap();
    let path = AddressVector {
        hop_limit: 3,
        traffic_class: 0x20,
        sl: 5,
        flow_label: 0x12345,
        ..vector(2)
    };
    let ah = pd.create_ah(&path).unwrap();
    drop(pd);
    let attr = ah.query().unwrap();
    assert_eq!(attr.vector, path);
    assert!(attr.next_hop.is_some());
    let other = ah.pd().create_ah_now(&path).unwrap();
    assert_ne!(ah.number(), other.number());
    let clone = ah.clone();
    drop(ah);
    assert_eq!(clone.query().unwrap().vector, path);
    drop((clone, other));
    if let Some(mock) = &daemon.mock {
        assert!(mock.state().clients[0].objects.is_empty(), "something is left");
        assert_eq!(mock.state().refused, [""; 0]);
    }
}

#[test]
fn why_there_is_no_address_handle_is_told_by_the_errno() {
    let daemon = Daemon::start();
    if daemon.mock.is_none() {
        return;
    }
    let context = Context::open(&daemon.socket, "rnic0").unwrap();
    let pd = context.alloc_pd().unwrap();
    let (again, unreachable) = (Some(11), Some(113));
    assert_eq!(pd.create_ah(&vector(99)).unwrap_err().errno(), unreachable);
    assert_eq!(pd.create_ah_now(&vector(99)).unwrap_err().errno(), unreachable);
    assert_eq!(pd.create_ah_now(&vector(98)).unwrap_err().errno(), again);
    assert!(pd.create_ah(&vector(98)).is_ok());
}

#[test]
fn addresses_of_either_family_are_taken() {
    for text in ["10.0.0.7", "fd00::7"] {
        let ip: IpAddr = text.parse().unwrap();
        assert_eq!(AddressVector::to(ip).dgid.ip(), ip);
    }
}
