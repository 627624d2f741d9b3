//! Address handles by the sleepable form, and their end.
use std::{collections::HashSet, time::Duration};

use rnic_abi::*;
use rustix::io::Errno;

use super::wire::{PORT, Station};
use crate::testing::*;

/// What is asked of one who waits: the request is sent, and the station answers.
pub fn create_while_served(client: &mut Client, station: &mut Station, pd: u32, dgid: &str) -> CreateAhReply {
    let ah_attr = av(dgid);
    client.send(
        Op::CreateAh,
        &CreateAh {
            pd,
            flags: 0,
            ah_attr,
        },
        &[],
    );
    wait_for(|| {
        station.serve();
        client.wait(Duration::from_millis(1))
    });
    client.result().unwrap().0
}

#[test]
fn an_ah_waits_for_its_neighbour_and_has_its_mac_address() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[("10.0.0.9", 24)]);
    let mut client = daemon.client();
    let pd = client.pd();
    let ah = create_while_served(&mut client, &mut station, pd, "10.0.0.9");
    let shown = client.query_ah(ah.handle).unwrap();
    assert_eq!((shown.next_hop, shown.ah), (station.port.mac, ah.ah));
    assert_eq!(shown.ah_attr, av("10.0.0.9"));
    // The second one need not wait.
    let second = client.try_ah(pd, 0, av("10.0.0.9")).unwrap();
    assert_ne!(second.ah, ah.ah);
    assert_eq!(daemon.status().ahs, 2);
}

#[test]
fn an_ah_is_busy_for_its_pd_and_destroyed_like_any_object() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let pd = client.pd();
    let ah = client.try_ah(pd, 0, av("10.0.0.2")).unwrap();
    let refused = client.destroy(Op::DeallocPd, pd).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    assert!(client.destroy(Op::DestroyQp, ah.handle).is_err(), "it is no QP");
    client.destroy(Op::DestroyAh, ah.handle).unwrap();
    assert!(client.query_ah(ah.handle).is_err());
    assert!(client.destroy(Op::DestroyAh, ah.handle).is_err(), "twice");
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn nonsense_in_a_request_for_an_ah_is_named_and_holds_nothing() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let label = Av {
        flow_label: 1 << 20,
        ..av("10.0.0.2")
    };
    let index = Av {
        sgid_index: 200,
        ..av("10.0.0.2")
    };
    let sl = Av {
        sl: 8,
        ..av("10.0.0.2")
    };
    for (pd, flags, av, text) in [
        (pd, 2, av("10.0.0.2"), "flags is 0x2"),
        (pd ^ 1, 0, av("10.0.0.2"), "no such PD"),
        (pd, 0, label, "20 bits"),
        (pd, 1, label, "20 bits"),
        (pd, 0, index, "sgid_index is 200"),
        (pd, 1, index, "sgid_index is 200"),
        (pd, 0, sl, "ah_attr.sl is 8"),
        (pd, 1, sl, "ah_attr.sl is 8"),
        (pd, 0, av("127.0.0.1"), "no station"),
        (pd, 0, av("192.0.2.1"), "add an address of that network"),
        (pd, 1, av("192.0.2.1"), "add an address of that network"),
    ] {
        let refused = client.try_ah(pd, flags, av).unwrap_err();
        assert!(refused.text.contains(text), "{}", refused.text);
    }
    client.destroy(Op::DeallocPd, pd).unwrap();
    assert_eq!(daemon.status().ahs, 0);
}

#[test]
fn a_quota_limits_the_ahs_of_a_client() {
    let daemon = TestDaemon::with(
        1,
        "limits: {clients: 1, per_client: {ahs: 3, queue_memory: 8MiB, cq_depth: 64, wr_depth: 64}}",
    );
    let mut client = daemon.client();
    let pd = client.pd();
    for _ in 0..20 {
        let ahs: Vec<_> = (0..3)
            .map(|_| client.try_ah(pd, 0, av("10.0.0.2")).unwrap())
            .collect();
        let refused = client.try_ah(pd, 0, av("10.0.0.2")).unwrap_err();
        assert_eq!(refused.errno, Errno::NOMEM);
        assert!(refused.text.contains("limits.per_client.ahs"), "{}", refused.text);
        for ah in ahs {
            client.destroy(Op::DestroyAh, ah.handle).unwrap();
        }
    }
}

#[test]
fn ten_thousand_ahs_come_and_go_and_no_number_returns_hot() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let mut recent = std::collections::VecDeque::new();
    let mut numbers = HashSet::new();
    for round in 0..10_000 {
        let ah = client.try_ah(pd, round % 2, av("10.0.0.2")).unwrap();
        let slot = rnic_engine::view::slot_of(ah.ah);
        assert!(!recent.contains(&slot), "slot {slot} was taken again at once");
        recent.push_back(slot);
        if recent.len() > 16 {
            recent.pop_front();
        }
        numbers.insert(ah.ah);
        client.destroy(Op::DestroyAh, ah.handle).unwrap();
        let gone = client.query_ah(ah.handle).unwrap_err();
        assert_eq!(gone.errno, Errno::INVAL);
    }
    assert!(numbers.len() > 2000, "{} different numbers", numbers.len());
    drop(client);
    daemon.wait_for_baseline();
}

#[test]
fn a_silent_neighbour_is_a_refusal_and_what_the_request_held_is_free() {
    let (daemon, _wire) = TestDaemon::with_wire(PORT);
    let mut client = daemon.client();
    let pd = client.pd();
    let refused = client.try_ah(pd, 0, av("10.0.0.9")).unwrap_err();
    assert_eq!(refused.errno, Errno::HOSTUNREACH);
    assert!(refused.text.contains("10.0.0.9"), "{}", refused.text);
    assert_eq!(daemon.neighbours()[0].state, "failed");
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn a_client_that_dies_leaves_no_ah_and_no_user_of_a_neighbour() {
    let with = format!("{PORT}, neighbours: [{{ip: 10.0.0.8, mac: '02:00:00:00:00:08'}}]");
    let (daemon, _wire) = TestDaemon::with_wire(&with);
    for waiting in [false, true] {
        let mut client = daemon.client();
        let pd = client.pd();
        for flags in [0, 1, 0, 1] {
            client.try_ah(pd, flags, av("10.0.0.8")).unwrap();
        }
        assert_eq!(daemon.neighbours()[0].users, 4);
        if waiting {
            let ah_attr = av("10.0.0.9");
            client.send(
                Op::CreateAh,
                &CreateAh {
                    pd,
                    flags: 0,
                    ah_attr,
                },
                &[],
            );
            wait_for(|| daemon.neighbours().len() == 2);
        }
        drop(client);
        daemon.wait_for_baseline();
        assert_eq!(daemon.neighbours()[0].users, 0);
    }
}
