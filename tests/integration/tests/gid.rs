//! A port's GIDs follow the kernel interface it is on, under the hands of `ip`.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rnic::{
    Access, ConnectOptions, Context, Cq, Endpoint, EventKind, EventObject, Mr, Pd, Qp, QpConfig, QpState,
    Status,
};
use rnic_tests::{Appliance, PortSetup, Setup, Turn, Wire, poll_until, privileged};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
const PATIENCE: Duration = Duration::from_secs(20);
const DEVICE: &str = "rnic0";

/// Two appliances on a wire. The first has 10.0.0.1 (index 0) and fd00::1 (index 1) by configuration, and follows
/// its interface; the second has 10.0.0.2 and fd00::2.
struct Lab {
    wire: Wire,
    a: Appliance,
    b: Appliance,
}

impl Lab {
    fn new() -> Lab {
        let wire = Wire::new();
        let follows = PortSetup::veth(0).with("follow_netdev: true");
        let a = Appliance::start_in("appliance a", &wire.a, &Setup::new([follows]));
        let b = Appliance::start_in("appliance b", &wire.b, &Setup::new([PortSetup::veth(1)]));
        Lab { wire, a, b }
    }

    fn ip(&self, args: &str) {
        self.wire.a.run("ip", &args.split(' ').collect::<Vec<_>>());
    }

    /// Index, address and state of each GID of the first appliance.
    fn table(&self) -> Vec<(u64, String, String)> {
        let json = self.a.ctl_json(&["gid"]);
        let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
        let row = |gid: &serde_json::Value| {
            let index = gid["index"].as_u64().expect("an index");
            (index, text(&gid["ip"]), text(&gid["state"]))
        };
        json.as_array().expect("a list").iter().map(row).collect()
    }

    /// ICMP messages "destination unreachable" that the first appliance's kernel has sent.
    fn unreachables(&self) -> u64 {
        let text = self.wire.a.run("cat", &["/proc/net/snmp"]);
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let at = names.split(' ').position(|name| name == "OutDestUnreachs");
        let value = at.and_then(|at| values.split(' ').nth(at));
        value.expect("a counter").parse().expect("a number")
    }

    fn index_of(&self, ip: &str) -> Option<u64> {
        let found = self
            .table()
            .into_iter()
            .find(|(_, of, state)| of == ip && state == "live");
        found.map(|(index, ..)| index)
    }
}

/// One end of a connection.
struct End {
    context: Context,
    _pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(appliance: &Appliance) -> End {
    let context = appliance.open(DEVICE);
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(64).unwrap();
    let qp = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
    let mr = pd
        .alloc_mr(1 << 16, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
        .unwrap();
    End {
        context,
        _pd: pd,
        cq,
        qp,
        mr,
    }
}

/// Connects an end at the first appliance, on the GID at this index, to one at the second.
fn connected(lab: &Lab, gid_index: u8) -> [End; 2] {
    let [a, b] = [&lab.a, &lab.b].map(end);
    let ours = ConnectOptions {
        gid_index,
        ..ConnectOptions::default()
    };
    let theirs = ConnectOptions::default();
    let pa: Endpoint = a.qp.endpoint(&ours).unwrap();
    let pb = b.qp.endpoint(&theirs).unwrap();
    a.qp.connect(&pb, &ours).unwrap();
    b.qp.connect(&pa, &theirs).unwrap();
    [a, b]
}

/// Moves data both ways.
fn exchange(ends: &[End; 2]) {
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&ends[from], &ends[to]);
        let remote = to.mr.remote();
        from.qp
            .post(|batch| {
                batch.write(from.mr.slice(..60_000), remote).signaled();
            })
            .unwrap();
        assert_eq!(from.cq.wait_vec(1, SOON).unwrap()[0].status, Status::Success);
    }
}

fn gid_changed(context: &Context) {
    let event = context.next_event(SOON).unwrap().expect("an event");
    assert_eq!(
        (event.kind, event.object),
        (EventKind::GidChange, EventObject::Port(1)),
        "{event}"
    );
}

fn ip_at(context: &Context, index: u8) -> String {
    context.gid(index).unwrap().gid.ip().to_string()
}

/// Set when it is dropped, also by a panic.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn gids_follow_the_interface_and_a_qp_keeps_its_own_while_it_lives() {
    let _turn = Turn::take();
    if !privileged("gids_follow_the_interface") {
        return;
    }
    let lab = Lab::new();
    let watcher = lab.a.open(DEVICE);
    assert_eq!(watcher.gids().unwrap().len(), 2);

    lab.ip("addr add 10.0.0.11/24 dev veth0");
    gid_changed(&watcher);
    assert_eq!(ip_at(&watcher, 2), "10.0.0.11");
    // The peer's question for 10.0.0.11 is answered by the kernel that has it.
    let ends = connected(&lab, 2);
    exchange(&ends);
    assert_eq!(
        lab.unreachables(),
        0,
        "the kernel has no business with RoCE packets"
    );

    lab.ip("addr del 10.0.0.11/24 dev veth0");
    gid_changed(&watcher);
    gid_changed(&ends[0].context);
    assert!(watcher.gids().unwrap().iter().all(|entry| entry.index != 2));
    exchange(&ends);
    lab.ip("addr add 10.0.0.12/24 dev veth0");
    gid_changed(&watcher);
    assert_eq!(ip_at(&watcher, 3), "10.0.0.12", "2 is not free");
    assert_eq!(lab.table()[2], (2, "10.0.0.11".into(), "held".into()));
    exchange(&ends);
    assert_eq!(ends[0].qp.query().unwrap().state, QpState::Rts);

    // What the kernel has is answered for once, by the kernel; what is configured, by the port.
    lab.wire
        .b
        .run("ip", &["addr", "add", "10.0.0.9/24", "dev", "veth0"]);
    for address in ["10.0.0.12", "10.0.0.1"] {
        let out = lab
            .wire
            .b
            .run("ping", &["-c", "3", "-i", "0.05", "-W", "5", address]);
        assert!(out.contains(" 0% packet loss") && !out.contains("DUP"), "{out}");
    }

    drop(ends);
    lab.ip("addr add 10.0.0.13/24 dev veth0");
    gid_changed(&watcher);
    assert_eq!(ip_at(&watcher, 2), "10.0.0.13", "free once its QP is gone");
    drop(watcher);
    lab.a.stop();
    lab.b.stop();
}

#[test]
fn addresses_that_churn_under_traffic_disturb_no_qp_and_end_in_the_kernels_table() {
    let _turn = Turn::take();
    if !privileged("addresses_that_churn") {
        return;
    }
    let lab = Lab::new();
    let watcher = lab.a.open(DEVICE);
    lab.ip("addr add 10.0.0.11/24 dev veth0");
    gid_changed(&watcher);
    let (configured, followed) = (connected(&lab, 0), connected(&lab, 2));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for ends in [&configured, &followed] {
            let done = &done;
            scope.spawn(move || {
                exchange(ends);
                while !done.load(Ordering::Acquire) {
                    exchange(ends);
                }
            });
        }
        let _done = Done(&done);
        for round in 0..10 {
            for host in 20..40 {
                // A network each: those of one network would go with its first address.
                lab.ip(&format!("addr add 10.0.0.{host}/32 dev veth0"));
            }
            // Now and then the followed QP loses its address under its traffic, and gets it back.
            lab.ip(&format!(
                "addr {} 10.0.0.11/24 dev veth0",
                ["del", "add"][round % 2]
            ));
            for host in 20..40 {
                lab.ip(&format!("addr del 10.0.0.{host}/32 dev veth0"));
            }
        }
    });
    gid_changed(&watcher);
    let settled = || (lab.index_of("10.0.0.11") == Some(2) && lab.table().len() == 3).then_some(());
    assert!(poll_until(PATIENCE, settled).is_some(), "{:?}", lab.table());
    for ends in [&configured, &followed] {
        exchange(ends);
    }
    drop((watcher, configured, followed));
    lab.a.stop();
    lab.b.stop();
}
