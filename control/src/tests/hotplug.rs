//! Ports that come and go under a running daemon.
use rnic_abi::*;
use rnic_transport::Check;
use rustix::io::Errno;

use crate::{AdminRequest, AdminResponse, hotplug::PortChange, request_line, testing::*};

/// What `rnicctl port add` or `remove` would be told.
fn try_change(daemon: &TestDaemon, request: AdminRequest) -> Result<serde_json::Value, String> {
    let line = daemon.admin_line(request_line(request).as_bytes());
    match serde_json::from_str(&line).unwrap() {
        AdminResponse::Ok(value) => Ok(value),
        AdminResponse::Error(text) => Err(text),
    }
}

fn try_remove(daemon: &TestDaemon, name: &str) -> Result<PortChange, String> {
    let name = name.to_owned();
    try_change(daemon, AdminRequest::PortRemove { name }).map(|value| serde_json::from_value(value).unwrap())
}

fn try_add(daemon: &TestDaemon, ports: &str) -> Result<Vec<PortChange>, String> {
    let ports = ports.to_owned();
    try_change(daemon, AdminRequest::PortAdd { ports }).map(|value| serde_json::from_value(value).unwrap())
}

/// Two ports joined back to back.
fn add_pair(daemon: &TestDaemon, a: u32, b: u32) -> Vec<PortChange> {
    let end = |n: u32, peer: u32| {
        format!(
            "- {{name: rnic{n}, device: {{ring: {{peer: rnic{peer}}}}}, mtu: 4200, addresses: [10.0.{n}.1/24],\n   \
             rx_descriptors: 256, tx_descriptors: 256, loopback: wire}}\n"
        )
    };
    try_add(daemon, &(end(a, b) + &end(b, a))).unwrap_or_else(|error| panic!("{error}"))
}

fn name_of(client: &mut Client, device: u32) -> Result<String, Errno> {
    let arg = DeviceArg { device, reserved: 0 };
    let reply = client
        .call::<DeviceReply>(Op::QueryDevice, &arg)
        .map_err(|refused| refused.errno)?;
    Ok(String::from_utf8_lossy(&reply.name)
        .trim_end_matches('\0')
        .to_owned())
}

fn state_of(client: &mut Client, handle: u32) -> (u8, u8) {
    let arg = HandleArg { handle, reserved: 0 };
    let reply: QueryQpReply = client.call(Op::QueryQp, &arg).unwrap();
    (reply.attrs.qp_state, reply.cause.check)
}

/// Objects of one client on one device, its QP in RTS and with a receive posted.
struct Owned {
    pd: u32,
    cq: u32,
    qp: CreateQpReply,
}

fn own(client: &mut Client, device: u32, peer: &str) -> Owned {
    let pd = client.try_pd_on(device).unwrap();
    let cq = client.try_cq_on(device, 64, 0).unwrap().handle;
    let qp = client.qp(pd, cq);
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, peer, qp.qpn).unwrap();
    client.make_rts(qp.handle);
    Owned { pd, cq, qp }
}

/// All events there are, those of devices and those of objects.
fn events(client: &Client, count: u32) -> Vec<(u32, u32)> {
    let events: Vec<_> = (0..count).map(|head| client.event_with_cause(head)).collect();
    let mut kinds = Vec::new();
    for (handle, kind, cause) in events {
        if kind & event_kind::ERRORS != 0 {
            assert_eq!(cause.check, Check::DeviceRemoved as u8, "{handle:#x}: {kind:#x}");
        }
        kinds.push((handle, kind));
    }
    kinds.sort_unstable();
    kinds
}

#[test]
fn a_removed_port_takes_its_qps_to_err_tells_every_client_once_and_leaves_the_rest_alone() {
    let daemon = TestDaemon::start(2);
    let mut clients = [daemon.client(), daemon.client(), daemon.client()];
    let owned = clients.each_mut().map(|client| {
        [
            own(client, 1, "10.0.0.1"),
            own(client, 1, "10.0.0.1"),
            own(client, 0, "10.0.0.2"),
        ]
    });
    let removed = try_remove(&daemon, "rnic1").unwrap();
    assert_eq!(
        removed,
        PortChange {
            name: "rnic1".into(),
            device: 1
        }
    );
    let gone = |refused: Refused| {
        assert_eq!(refused.errno, Errno::NODEV, "{}", refused.text);
        assert!(refused.text.contains("device 1 was removed"), "{}", refused.text);
    };
    for (client, [first, second, other]) in clients.iter_mut().zip(&owned) {
        let mut expected = [
            (1, event_kind::DEVICE_FATAL),
            (first.qp.handle, event_kind::QP_FATAL),
            (second.qp.handle, event_kind::QP_FATAL),
        ];
        expected.sort_unstable();
        assert_eq!(events(client, 3), expected);
        for of in [first, second] {
            assert_eq!(state_of(client, of.qp.handle), (6, Check::DeviceRemoved as u8));
            gone(client.try_qp(of.pd, of.cq).unwrap_err());
            let reset = QpAttrs::default();
            gone(client.modify(of.qp.handle, qp_mask::STATE, reset).unwrap_err());
            // Where it cannot go from ERR either.
            gone(client.make_rtr(of.qp.handle, "10.0.0.1", 5).unwrap_err());
            let fd = sealed_memfd(4096);
            gone(client.try_mr(of.pd, &fd, 4096, 1).unwrap_err());
            // To ERR it may go, where it is.
            let err = QpAttrs {
                qp_state: 6,
                ..QpAttrs::default()
            };
            client.modify(of.qp.handle, qp_mask::STATE, err).unwrap();
        }
        gone(client.try_pd_on(1).unwrap_err());
        gone(client.try_cq_on(1, 64, 0).unwrap_err());
        assert_eq!(name_of(client, 1), Err(Errno::NODEV));
        // The other device is as it was, and can be used.
        assert_eq!(state_of(client, other.qp.handle).0, 3);
        own(client, 0, "10.0.0.1");
    }
    let ports: Vec<_> = daemon.status().ports.into_iter().map(|port| port.name).collect();
    assert_eq!(ports, ["rnic0"]);
    // What is left can be destroyed, and is destroyed when its client dies.
    let [mut client, second_client, third_client] = clients;
    let [first, second, _] = &owned[0];
    for of in [first, second] {
        assert!(client.destroy_counting(Op::DestroyQp, of.qp.handle) >= 1);
        client.destroy_counting(Op::DestroyCq, of.cq);
        client.destroy(Op::DeallocPd, of.pd).unwrap();
    }
    drop((client, second_client, third_client));
    daemon.wait_for_baseline();
}

#[test]
fn what_cannot_be_removed_or_added_is_told_with_a_reason() {
    let daemon = TestDaemon::start(1);
    let unknown = try_remove(&daemon, "rnic7").unwrap_err();
    assert!(
        unknown.contains("no port rnic7; there are: rnic0, rnic1"),
        "{unknown}"
    );
    try_remove(&daemon, "rnic1").unwrap();
    let again = try_remove(&daemon, "rnic1").unwrap_err();
    assert!(again.contains("no port rnic1"), "{again}");
    for (port, text) in [
        (
            "name: rnic0\ndevice: {vdev: net_null7}",
            "there is a port rnic0 already",
        ),
        (
            "name: rnic3\ndevice: {vdev: net_null7}\naddresses: [10.0.0.1/16]",
            "10.0.0.1 is an address of rnic0 already",
        ),
        ("name: rnic3", "device"),
        (
            "name: rnic3\ndevice: {ring: {peer: rnic0}}",
            "there is no port named rnic0",
        ),
        ("{}", "name"),
    ] {
        let error = try_add(&daemon, port).unwrap_err();
        assert!(error.contains(text), "{port}: {error}");
    }
    assert_eq!(daemon.status().ports.len(), 1);
}

#[test]
fn two_removals_at_once_end_both_and_the_same_port_is_removed_once() {
    let daemon = TestDaemon::start(2);
    add_pair(&daemon, 2, 3);
    let results: Vec<_> = std::thread::scope(|scope| {
        let names = ["rnic2", "rnic3", "rnic2", "rnic1", "rnic3"];
        let daemon = &daemon;
        let removers = names.map(|name| scope.spawn(move || (name, try_remove(daemon, name))));
        removers.map(|remover| remover.join().unwrap()).into()
    });
    for name in ["rnic1", "rnic2", "rnic3"] {
        let removed = results
            .iter()
            .filter(|(of, result)| *of == name && result.is_ok());
        assert_eq!(removed.count(), 1, "{results:?}");
    }
    for (name, result) in &results {
        if let Err(why) = result {
            assert!(
                why.contains("no port") || why.contains("is being removed already"),
                "{name}: {why}"
            );
        }
    }
    assert_eq!(daemon.status().ports.len(), 1);
}

#[test]
fn clients_see_ports_that_come_and_never_two_in_one_place() {
    let daemon = TestDaemon::start(1);
    let mut old = daemon.client();
    let mut places = Vec::new();
    let mut head = 0;
    // More rounds than there are places.
    for round in 0..20 {
        let added = add_pair(&daemon, 2, 3);
        for change in &added {
            let device = u32::from(change.device);
            let mut fresh = daemon.client();
            assert_eq!(name_of(&mut fresh, device).as_deref(), Ok(change.name.as_str()));
            if places.contains(&device) {
                // It knew another one there.
                assert_eq!(name_of(&mut old, device), Err(Errno::NODEV), "round {round}");
                assert_eq!(old.try_pd_on(device).unwrap_err().errno, Errno::NODEV);
            } else {
                places.push(device);
                assert_eq!(name_of(&mut old, device).as_deref(), Ok(change.name.as_str()));
                assert_eq!(old.event(head), (device, event_kind::PORT_ACTIVE));
                head += 1;
                let pd = old.try_pd_on(device).unwrap();
                old.destroy(Op::DeallocPd, pd).unwrap();
            }
            let peer = format!("10.0.{}.1", if change.name == "rnic2" { 3 } else { 2 });
            own(&mut fresh, device, &peer);
        }
        for change in &added {
            try_remove(&daemon, &change.name).unwrap();
        }
        if head < places.len() as u32 * 2 && round < 15 {
            // The link of the second one goes down with the first, if the daemon looked in between.
            for change in &added {
                let (device, kinds) = old.event(head);
                assert_eq!(device, u32::from(change.device));
                assert_ne!(kinds & event_kind::DEVICE_FATAL, 0);
                head += 1;
            }
        }
    }
    assert_eq!(places.len(), 30, "32 places, two of which are the first ports'");
    assert_eq!(places.iter().max(), Some(&31));
}

#[test]
fn a_modify_that_waits_for_a_neighbour_ends_with_its_port() {
    let (daemon, _wire) = TestDaemon::with_wire("addresses: [10.0.0.1/24]");
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    client.make_init(qp.handle);
    let (handle, mask) = (qp.handle, RTR);
    let attrs = rtr("10.0.0.99", 5);
    client.send(Op::ModifyQp, &ModifyQp { handle, mask, attrs }, &[]);
    wait_for(|| daemon.status().qps == 1);
    try_remove(&daemon, "rnic0").unwrap();
    let refused = client.result::<Empty>().map(drop).unwrap_err();
    assert_eq!(refused.errno, Errno::NODEV, "{}", refused.text);
    assert_eq!(state_of(&mut client, qp.handle), (6, Check::DeviceRemoved as u8));
}

#[test]
fn ports_come_and_go_while_clients_create_and_die_and_nothing_is_left() {
    let daemon = TestDaemon::start(2);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut settled = None;
    for round in 0..50 {
        let added = add_pair(&daemon, 2, 3);
        let device = u32::from(added[0].device);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let mut client = daemon.client();
                // Until the device goes; then the client dies with what it has.
                while let (Ok(pd), Ok(cq)) = (client.try_pd_on(device), client.try_cq_on(device, 64, 0)) {
                    let Ok(qp) = client.try_qp(pd, cq.handle) else {
                        break;
                    };
                    let init = QpAttrs {
                        qp_state: 1,
                        port_num: 1,
                        ..QpAttrs::default()
                    };
                    let mask = qp_mask::STATE | qp_mask::PORT | qp_mask::PKEY_INDEX | qp_mask::ACCESS_FLAGS;
                    let _ = client.modify(qp.handle, mask, init);
                    client.destroy_counting(Op::DestroyQp, qp.handle);
                    client.destroy_counting(Op::DestroyCq, cq.handle);
                    client.destroy(Op::DeallocPd, pd).unwrap();
                }
            });
            for change in &added {
                try_remove(&daemon, &change.name).unwrap();
            }
            busy.join().unwrap();
        });
        daemon.wait_for_baseline();
        if round == 5 {
            settled = Some(descriptors());
        }
    }
    // Other tests of this process come and go too: within their noise, not 44 rounds' worth.
    let (before, after) = (settled.unwrap(), descriptors());
    assert!(after < before + 300, "{before} descriptors, now {after}");
}

#[test]
fn who_has_no_quota_left_is_told_that_the_device_is_gone_all_the_same() {
    let limits =
        "limits: {clients: 8, per_client: {queue_memory: 8MiB, cq_depth: 1024, qps: 1, mrs: 1, ahs: 1}}";
    let daemon = TestDaemon::with(1, limits);
    let mut client = daemon.client();
    let owned = own(&mut client, 1, "10.0.0.1");
    let fd = sealed_memfd(4096);
    client.try_mr(owned.pd, &fd, 4096, 1).unwrap();
    client.try_ah(owned.pd, 0, av("10.0.0.1")).unwrap();
    let mut attempts = |errno| {
        let refusals = [
            client.try_mr(owned.pd, &fd, 4096, 1).map(drop).unwrap_err(),
            client.try_ah(owned.pd, 0, av("10.0.0.1")).map(drop).unwrap_err(),
            client.try_qp(owned.pd, owned.cq).map(drop).unwrap_err(),
        ];
        for refused in refusals {
            assert_eq!(refused.errno, errno, "{}", refused.text);
        }
    };
    attempts(Errno::NOMEM);
    try_remove(&daemon, "rnic1").unwrap();
    attempts(Errno::NODEV);
}
