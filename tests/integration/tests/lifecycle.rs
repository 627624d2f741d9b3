//! Objects made, changed and destroyed while data moves through them.
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rnic::{Access, ConnectOptions, Context, Cq, Mr, Pd, Qp, QpConfig, QpState, Status};
use rnic_abi::{ModifyQp, Op, QpAttrs, qp_mask};
use rnic_tests::probe::Rng;
use rnic_tests::raw::{ipv4_gid, pair, rts, write};
use rnic_tests::{Appliance, Bystanders, Scene, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(20));

struct End {
    pd: Pd,
    cq: Cq,
    qp: Qp,
}

fn connected(scene: &Scene) -> [End; 2] {
    let ends = ["rnic0", "rnic1"].map(|device| {
        let context = Context::open(&scene.socket, device).unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(512).unwrap();
        let qp = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
        End { pd, cq, qp }
    });
    let options = ConnectOptions::default();
    let [a, b] = [0, 1].map(|i: usize| ends[i].qp.endpoint(&options).unwrap());
    ends[0].qp.connect(&b, &options).unwrap();
    ends[1].qp.connect(&a, &options).unwrap();
    ends
}

fn post_writes(end: &End, from: &Mr, to: rnic::RemoteMr, count: u64) {
    end.qp
        .post(|batch| {
            for id in 0..count {
                batch.write(from, to).wr_id(id).signaled();
            }
        })
        .unwrap();
}

#[test]
fn everything_can_be_destroyed_in_any_order_amid_traffic() {
    let _turn = Turn::take();
    let mut scene = Scene::new();
    let mut rng = Rng::new(&[31]);
    for round in 0..40 {
        let [a, b] = connected(&scene);
        let from = a.pd.alloc_mr(256 << 10, Access::LOCAL_WRITE).unwrap();
        let to =
            b.pd.alloc_mr(256 << 10, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
                .unwrap();
        post_writes(&a, &from, to.remote(), 64);
        std::thread::sleep(Duration::from_micros(rng.below(3000) as u64));
        let End { pd, cq, qp } = a;
        match round % 4 {
            0 => drop((qp, cq, pd, from, to, b)),
            1 => drop((to, b, from, pd, cq, qp)),
            2 => drop((b, qp, from, to, pd, cq)),
            _ => {
                qp.fail().unwrap();
                drop((to, qp, pd, cq, b, from));
            }
        }
        if round % 10 == 0 {
            scene.bystanders.check();
        }
    }
    scene.end();
}

#[test]
fn once_deregistered_memory_is_out_of_the_reach_of_a_peer_that_keeps_writing() {
    let _turn = Turn::take();
    let scene = Scene::new();
    for _ in 0..10 {
        let [a, b] = connected(&scene);
        let from = a.pd.alloc_mr(64 << 10, Access::LOCAL_WRITE).unwrap();
        from.write_at(0, &vec![7; 64 << 10]);
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        let to = b.pd.alloc_mr(64 << 10, access).unwrap();
        let remote = to.remote();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = loop {
                    post_writes(&a, &from, remote, 1);
                    let done = a.cq.wait_vec(1, SOON).unwrap();
                    match done.first().expect("a completion").status {
                        Status::Success => {}
                        failure => break failure,
                    }
                };
                assert_eq!(refused, Status::RemoteAccess);
                over.store(true, Ordering::Relaxed);
            });
            std::thread::sleep(Duration::from_millis(3));
            to.deregister().unwrap();
        });
        assert!(over.load(Ordering::Relaxed));
    }
    scene.end();
}

#[test]
fn random_transitions_amid_traffic_are_done_or_refused_and_harm_nobody() {
    let _turn = Turn::take();
    let mut scene = Scene::new();
    let mut rng = Rng::new(&[32]);
    for round in 0..20 {
        let [(mut a, qa), (mut b, qb)] = pair(&scene.socket, 16);
        let file = rnic_tests::raw::memfd(1 << 20, rustix::fs::SealFlags::SHRINK, false).unwrap();
        let (from, to) = (a.mr(&file, 1 << 20, 0), b.mr(&file, 1 << 20, 0));
        for _ in 0..30 {
            for id in 0..4 {
                a.post(&qa, qa.sq, &write(id, 0, 100_000, from.lkey, 0, to.rkey));
            }
            let (verbs, qp, gid) = match rng.below(2) {
                0 => (&mut a, &qa, "10.0.0.2"),
                _ => (&mut b, &qb, "10.0.0.1"),
            };
            let peer = if rng.below(3) == 0 {
                rng.below(1 << 24) as u32
            } else {
                qb.made.qpn
            };
            let body = match rng.below(8) {
                step @ 0..=2 => rts(qp.made.handle, peer, ipv4_gid(gid))[step],
                state => ModifyQp {
                    handle: qp.made.handle,
                    mask: qp_mask::STATE,
                    attrs: QpAttrs {
                        qp_state: state as u8 - 1,
                        ..QpAttrs::default()
                    },
                },
            };
            let reply = verbs.line.request(Op::ModifyQp, &body, &[]);
            assert!(reply.errno() == 0 || !reply.text().is_empty());
            while a.poll().is_some() || b.poll().is_some() {}
        }
        if round % 5 == 0 {
            scene.bystanders.check();
        }
    }
    scene.end();
}

#[test]
fn sessions_come_and_go_without_leaving_memory() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let file = rnic_tests::raw::memfd(1 << 20, rustix::fs::SealFlags::SHRINK, false).unwrap();
    let session = || {
        let [(mut a, qa), (mut b, _)] = pair(&scene.socket, 64);
        let (from, to) = (a.mr(&file, 1 << 20, 0), b.mr(&file, 1 << 20, 0));
        for id in 0..8 {
            a.post(&qa, qa.sq, &write(id, 0, 10_000, from.lkey, 0, to.rkey));
        }
        a.completion();
    };
    let mappings = || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", scene.appliance.pid())).unwrap();
        maps.lines().filter(|line| line.contains("memfd:")).count()
    };
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", scene.appliance.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    (0..20).for_each(|_| session());
    scene.assert_clean();
    let (mapped, before) = (mappings(), resident());
    (0..200).for_each(|_| session());
    scene.assert_clean();
    let same = rnic_tests::poll_until(Duration::from_secs(5), || (mappings() == mapped).then_some(()));
    assert!(
        same.is_some(),
        "{} mappings of clients instead of {mapped}",
        mappings()
    );
    assert!(
        resident() < before + 4096,
        "{} KiB of memory after {before}",
        resident()
    );
    scene.end();
}

#[test]
fn a_reset_qp_can_be_connected_again_and_starts_afresh() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let ends = connected(&scene);
    let options = ConnectOptions::default();
    for round in 0..5 {
        let [a, b] = &ends;
        let mr = b.pd.alloc_mr(4096, Access::LOCAL_WRITE).unwrap();
        b.qp.post_recv(|batch| {
            batch.recv(&mr).wr_id(round);
        })
        .unwrap();
        let text = a.pd.alloc_mr(4096, Access::LOCAL_WRITE).unwrap();
        text.write_at(0, &[round as u8 + 1; 100]);
        a.qp.post(|batch| {
            batch.send(text.slice(..100)).wr_id(round).signaled();
        })
        .unwrap();
        let got = b.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
        assert_eq!((got.wr_id, got.byte_len), (round, 100));
        assert_eq!(mr.read_vec(0, 100), [round as u8 + 1; 100]);
        a.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
        for end in &ends {
            end.qp.reset().unwrap();
            assert_eq!(end.qp.query().unwrap().state, QpState::Reset);
        }
        let [pa, pb] = [a, b].map(|end| end.qp.endpoint(&options).unwrap());
        a.qp.connect(&pb, &options).unwrap();
        b.qp.connect(&pa, &options).unwrap();
    }
    drop(ends);
    scene.end();
}

#[test]
fn a_client_with_huge_messages_leaves_others_their_share() {
    let _turn = Turn::take();
    for loopback in ["wire", "direct"] {
        let setup = Setup::back_to_back().with_ports(&format!("loopback: {loopback}"));
        let mut scene = Scene::on(&setup);
        let hogs = [(&*scene.socket, "rnic0"); 2];
        let plan = rnic_tests::probe::Plan {
            endless: true,
            size_max: 4 << 20,
            window: 40,
            ..Default::default()
        };
        let hogs = rnic_tests::Probe::pair(hogs, &plan);
        for _ in 0..20 {
            scene.bystanders.check();
        }
        drop(hogs);
        scene.end();
    }
}

#[test]
fn the_daemon_stops_in_order_amid_traffic() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let socket = appliance.socket();
    let bystanders = Bystanders::start([(&socket, "rnic0"), (&socket, "rnic1")]);
    let began = Instant::now();
    appliance.stop();
    println!("stopped within {:?}", began.elapsed());
    // They fail, of course, and that is all.
    drop(bystanders);
}
