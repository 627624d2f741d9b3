//! Address handles by the atomic form (DESIGN I8).
use std::time::Instant;

use rnic_abi::*;
use rnic_engine::{mem::AhError, nonblocking::NonBlocking};
use rustix::io::Errno;

use super::wire::{PORT, Station};
use crate::{
    objects::{AH_RESERVE, NotNow},
    testing::*,
};

const NOW: u32 = ah_flags::NON_BLOCKING;

#[test]
fn what_is_not_known_is_eagain_then_a_success_and_what_is_silent_is_ehostunreach() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[("10.0.0.9", 24)]);
    let mut client = daemon.client();
    let pd = client.pd();
    for dgid in ["10.0.0.9", "10.0.0.99"] {
        let refused = client.try_ah(pd, NOW, av(dgid)).unwrap_err();
        assert_eq!(refused.errno, Errno::AGAIN);
        assert!(
            refused.text.contains(dgid) && refused.text.contains("being asked for"),
            "{}",
            refused.text
        );
    }
    // It was asked for all the same.
    let state = |ip: &str| {
        let all = daemon.neighbours();
        all.into_iter().find(|n| n.ip.to_string() == ip).map(|n| n.state)
    };
    wait_for(|| {
        station.serve();
        state("10.0.0.9").as_deref() == Some("reachable")
    });
    let ah = client.try_ah(pd, NOW, av("10.0.0.9")).unwrap();
    assert_eq!(client.query_ah(ah.handle).unwrap().next_hop, station.port.mac);
    wait_for(|| state("10.0.0.99").as_deref() == Some("failed"));
    let refused = client.try_ah(pd, NOW, av("10.0.0.99")).unwrap_err();
    assert_eq!(refused.errno, Errno::HOSTUNREACH);
    client.destroy(Op::DestroyAh, ah.handle).unwrap();
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn it_allocates_nothing_and_waits_for_nothing_whatever_becomes_of_it() {
    let port = "addresses: [10.0.0.1/24], neighbours: [{ip: 10.0.0.9, mac: '02:00:00:00:00:09'}]";
    let mut held = HeldControl::new(port);
    let control = &mut held.control;
    let now = Instant::now();
    let (known, unknown, own) = (av("10.0.0.9"), av("10.0.0.99"), av("10.0.0.1"));
    let (nowhere, bad) = (av("192.0.2.1"), av("127.0.0.1"));
    let mut made = Vec::with_capacity(AH_RESERVE as usize);
    let section = NonBlocking::enter();
    // Debug builds abort when anything in here allocates or may block.
    let unresolved = control.ah_at_once(0, 7, &unknown, now).map(drop);
    let refused = [
        control.ah_at_once(0, 7, &nowhere, now).map(drop),
        control.ah_at_once(0, 7, &bad, now).map(drop),
        control.ah_at_once(9, 7, &known, now).map(drop),
    ];
    for i in 0..AH_RESERVE {
        let av = if i % 2 == 0 { &known } else { &own };
        made.push(control.ah_at_once(0, 7, av, now));
    }
    let exhausted = control.ah_at_once(0, 7, &known, now).map(drop);
    drop(section);
    assert_eq!(unresolved, Err(NotNow::Unresolved("10.0.0.99".parse().unwrap())));
    assert!(refused.iter().all(|r| matches!(r, Err(NotNow::Route(_)))));
    assert_eq!(exhausted, Err(NotNow::NoReserve));
    let text = NotNow::NoReserve.refusal(&control.devices);
    assert_eq!(text.errno(), Errno::AGAIN);
    let states = control.neighbour_states();
    assert_eq!(states[0].users, AH_RESERVE / 2);

    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    let ahs = control.engine.ahs().clone();
    let first = made[0].number;
    assert_eq!(ahs.resolve(first, 7).unwrap().remote_mac, [2, 0, 0, 0, 0, 9]);
    assert_eq!(ahs.resolve(first, 8), Err(AhError::PdMismatch));
    // The event loop comes round.
    control.tend_ahs();
    let next = control.ah_at_once(0, 7, &known, now).unwrap();
    assert!(made.iter().all(|ah| ah.number != next.number));
    for ah in made.into_iter().chain([next]) {
        control.drop_ah(ah);
    }
    assert_eq!(ahs.resolve(first, 7), Err(AhError::Unknown));
    assert_eq!(control.neighbour_states()[0].users, 0);
    wait_for(|| {
        control.tend_ahs();
        control.dropped_ahs.is_empty()
    });
    held.end();
}

#[test]
fn an_ah_of_a_device_that_is_gone_has_no_path_and_can_be_destroyed() {
    let port = "addresses: [10.0.0.1/24], neighbours: [{ip: 10.0.0.9, mac: '02:00:00:00:00:09'}]";
    let mut held = HeldControl::new(port);
    let control = &mut held.control;
    let now = Instant::now();
    let ah = control.ah_at_once(0, 7, &av("10.0.0.9"), now).unwrap();
    let ahs = control.engine.ahs().clone();
    assert!(ahs.resolve(ah.number, 7).is_ok());
    assert_eq!(control.neighbour_states().len(), 1);
    control.remove_port(None, "rnic0").unwrap();
    assert_eq!(ahs.resolve(ah.number, 7), Err(AhError::Severed));
    assert!(control.neighbour_states().is_empty());
    let late = control.ah_at_once(0, 7, &av("10.0.0.9"), now).map(drop);
    assert!(matches!(late, Err(NotNow::Route(_))), "{late:?}");
    control.drop_ah(ah);
    held.end();
}
