//! UC and UD through whole appliances and the client library.
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use rnic::{
    Access, AddressVector, Completion, ConnectOptions, Context, Cq, Mr, Pd, Qp, QpConfig, QpType, Status,
};
use rnic_tests::{Appliance, Setup, Turn, program};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
const QKEY: u32 = 0x1111_1111;
/// Bytes of a side's buffer.
const ROOM: usize = 64 << 10;

struct Side {
    context: Context,
    pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

impl Side {
    fn open(appliance: &Appliance, device: &str, qp_type: QpType) -> Side {
        let context = appliance.open(device);
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let qp = pd.create_qp(QpConfig::new(&cq, &cq).qp_type(qp_type)).unwrap();
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let mr = pd.alloc_mr(ROOM, access).unwrap();
        Side {
            context,
            pd,
            cq,
            qp,
            mr,
        }
    }

    fn completion(&self) -> Completion {
        let completion = self.cq.wait_vec(1, SOON).unwrap().pop();
        completion.expect("a completion within 20 s").ok().unwrap()
    }
}

/// Two ports of one appliance: over a wire, over a wire with two cores, and without frames.
fn appliances() -> Vec<Appliance> {
    let wire = || Setup::back_to_back().with_ports("loopback: wire");
    let direct = Setup::back_to_back().with_ports("loopback: direct");
    [wire(), wire().cores(2), direct]
        .iter()
        .map(Appliance::start)
        .collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(37) ^ seed).collect()
}

#[test]
fn uc_connects_and_moves_sends_and_writes() {
    let _turn = Turn::take();
    for appliance in appliances() {
        let sides = ["rnic0", "rnic1"].map(|device| Side::open(&appliance, device, QpType::Uc));
        let options = ConnectOptions::default();
        let [a, b] = &sides;
        let ends = [a.qp.endpoint(&options).unwrap(), b.qp.endpoint(&options).unwrap()];
        a.qp.connect(&ends[1], &options).unwrap();
        b.qp.connect(&ends[0], &options).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            for (seed, len) in (0..).zip([0, 1, 1000, 9000]) {
                from.mr.write_at(0, &pattern(len, seed));
                to.qp
                    .post_recv(|batch| {
                        batch.recv(to.mr.slice(..len)).wr_id(5);
                    })
                    .unwrap();
                from.qp
                    .post(|batch| {
                        batch.send(from.mr.slice(..len)).imm(77).signaled();
                    })
                    .unwrap();
                let (_, received) = (from.completion(), to.completion());
                assert_eq!(
                    (received.wr_id, received.byte_len, received.imm),
                    (5, len as u32, Some(77))
                );
                assert_eq!(to.mr.read_vec(0, len), pattern(len, seed));
                to.qp
                    .post_recv(|batch| {
                        batch.recv([]).wr_id(6);
                    })
                    .unwrap();
                let there = to.mr.remote().at(30_000);
                from.qp
                    .post(|batch| {
                        batch.write(from.mr.slice(..len), there).imm(78).signaled();
                    })
                    .unwrap();
                let (_, told) = (from.completion(), to.completion());
                assert_eq!((told.wr_id, told.imm), (6, Some(78)));
                assert_eq!(to.mr.read_vec(30_000, len), pattern(len, seed));
            }
        }
        let refused = a.qp.post(|batch| {
            batch.read(a.mr.slice(..8), b.mr.remote().at(0)).wr_id(9);
        });
        refused.expect("the daemon looks at the operation");
        let failed = a.cq.wait_vec(1, SOON).unwrap()[0];
        assert_eq!(
            (failed.wr_id, failed.status),
            (9, Status::LocalQpOperation),
            "UC has no READ"
        );
        drop(sides);
        appliance.stop();
    }
}

#[test]
fn datagrams_go_to_whom_an_address_handle_leads_and_are_answered_by_what_they_came_with() {
    let _turn = Turn::take();
    for appliance in appliances() {
        let sides = ["rnic0", "rnic1"].map(|device| Side::open(&appliance, device, QpType::Ud));
        let [a, b] = &sides;
        a.qp.activate(QKEY).unwrap();
        b.qp.activate(QKEY).unwrap();
        for gid_index in 0..b.context.query_port().unwrap().gids as u8 {
            let dgid = b.context.gid(gid_index).unwrap().gid;
            let ah =
                a.pd.create_ah(&AddressVector::to(dgid).gid_index(gid_index))
                    .unwrap();
            for (seed, len) in (0..).zip([0, 1, 1024]) {
                a.mr.write_at(0, &pattern(len, seed));
                b.qp.post_recv(|batch| {
                    batch.recv(b.mr.slice(..2000)).wr_id(5);
                })
                .unwrap();
                a.qp.post(|batch| {
                    batch
                        .send_to(a.mr.slice(..len), &ah, b.qp.qpn(), QKEY)
                        .imm(77)
                        .signaled();
                })
                .unwrap();
                let (_, received) = (a.completion(), b.completion());
                assert_eq!((received.wr_id, received.byte_len as usize), (5, 40 + len));
                assert_eq!(
                    (received.imm, received.has_grh, received.src_qpn),
                    (Some(77), true, a.qp.qpn())
                );
                assert_eq!(b.mr.read_vec(40, len), pattern(len, seed));

                // Back to the sender, whoever it was.
                let back = b.pd.create_ah_from_wc(&received, &b.mr.slice(..40)).unwrap();
                assert_eq!(
                    back.query().unwrap().vector.dgid,
                    a.context.gid(gid_index).unwrap().gid
                );
                a.qp.post_recv(|batch| {
                    batch.recv(a.mr.slice(..2000)).wr_id(6);
                })
                .unwrap();
                let reply = b.mr.slice(40..40 + len);
                b.qp.post(|batch| {
                    batch.send_to(&reply, &back, received.src_qpn, 1 << 31).signaled();
                })
                .unwrap();
                // The handle may go: the request keeps it.
                drop(back);
                let (_, answer) = (b.completion(), a.completion());
                assert_eq!((answer.wr_id, answer.src_qpn), (6, b.qp.qpn()));
                assert_eq!(a.mr.read_vec(40, len), pattern(len, seed));
            }
        }
        drop(sides);
        appliance.stop();
    }
}

#[test]
fn pingpong_plays_over_uc_and_ud() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let example = program("rnicd").with_file_name("examples").join("pingpong");
    assert!(example.exists(), "run `cargo build -p rnic --examples` first");
    for (port, transport, size) in [
        ("28515", "uc", "9000"),
        ("28516", "ud", "1000"),
        ("28517", "rc", "9000"),
    ] {
        let side = |device: &str| {
            let mut side = Command::new(&example);
            side.arg("--socket").arg(appliance.socket());
            side.args([
                "-d", device, "-p", port, "-t", transport, "-s", size, "-n", "200", "--chk",
            ]);
            side.stdout(Stdio::piped()).stderr(Stdio::piped());
            side
        };
        let server = side("rnic1").spawn().unwrap();
        let client = side("rnic0").arg("localhost").output().unwrap();
        let server = server.wait_with_output().unwrap();
        for output in [client, server] {
            let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            assert!(
                output.status.success() && said[0].contains("200 iters in "),
                "{transport}: {said:?}"
            );
        }
    }
    appliance.stop();
}

#[test]
fn perf_measures_uc_and_ud() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let perf = program("rnicd").with_file_name("rnic-perf");
    assert!(perf.exists(), "run `cargo build -p rnic-perf` first");
    for line in [
        "send bw -c ud -s 512",
        "send lat -c ud",
        "send bw -c uc -s 9000",
        "write lat -c UC -s 64",
        "write bw -c uc",
    ] {
        let output = Command::new(&perf)
            .args(line.split(' '))
            .args([
                "-n", "200", "-t", "16", "--verify", "--json", "--self", "rnic1", "--socket",
            ])
            .arg(appliance.socket())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(
            output.status.success() && said[0].contains(r#""errors":0"#),
            "{line}: {said:?}"
        );
    }
    appliance.stop();
}

#[test]
fn groups_are_joined_on_the_link_and_their_datagrams_reach_every_member() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let side = |device| Side::open(&appliance, device, QpType::Ud);
    let (a, b, c) = (side("rnic0"), side("rnic1"), side("rnic1"));
    for side in [&a, &b, &c] {
        side.qp.activate(QKEY).unwrap();
    }
    for (gid_index, group) in [(0, "::ffff:239.1.2.3"), (1, "ff0e::1234")] {
        let group: Ipv6Addr = group.parse().unwrap();
        let vector = AddressVector::to(group).gid_index(gid_index);
        let ah = a.pd.create_ah(&vector).unwrap();
        b.qp.attach_mcast(group).unwrap();
        c.qp.attach_mcast(group).unwrap();
        c.qp.attach_mcast(group).expect("once more changes nothing");
        a.mr.write_at(0, &pattern(100, gid_index));
        let send = |side: &Side| {
            side.qp.post(|batch| {
                batch
                    .send_to(side.mr.slice(..100), &ah, Qp::MULTICAST, QKEY)
                    .signaled();
            })
        };
        for side in [&b, &c] {
            side.qp
                .post_recv(|batch| {
                    batch.recv(side.mr.slice(..200)).wr_id(5);
                })
                .unwrap();
        }
        send(&a).unwrap();
        a.completion();
        for side in [&b, &c] {
            let received = side.completion();
            assert_eq!(
                (received.wr_id, received.src_qpn, received.byte_len),
                (5, a.qp.qpn(), 140)
            );
            assert_eq!(side.mr.read_vec(40, 100), pattern(100, gid_index));
        }
        c.qp.detach_mcast(group).unwrap();
        let again = c.qp.detach_mcast(group).unwrap_err().to_string();
        assert!(again.contains("is not attached"), "{again}");
        // What comes now is for b alone; c has a receive, which stays.
        for side in [&b, &c] {
            side.qp
                .post_recv(|batch| {
                    batch.recv(side.mr.slice(..200)).wr_id(6);
                })
                .unwrap();
        }
        send(&a).unwrap();
        a.completion();
        assert_eq!(b.completion().wr_id, 6);
        assert_eq!(c.cq.wait_vec(1, Some(Duration::ZERO)).unwrap().len(), 0);
        c.qp.reset().unwrap();
        c.qp.activate(QKEY).unwrap();
    }
    let rc = Side::open(&appliance, "rnic1", QpType::Rc);
    let refused = rc
        .qp
        .attach_mcast("ff0e::1".parse::<Ipv6Addr>().unwrap())
        .unwrap_err();
    assert!(refused.to_string().contains("only UD QPs"), "{refused}");
    let refused =
        b.qp.attach_mcast("fd00::1".parse::<Ipv6Addr>().unwrap())
            .unwrap_err();
    assert!(refused.to_string().contains("no multicast address"), "{refused}");
    b.qp.destroy().expect("the library detaches it");
    drop((a, c, rc));
    appliance.stop();
}
