//! Frames of garbage on the wire: each is dropped and counted, the traffic between two appliances goes on.
use std::time::Duration;

use rnic_tests::probe::Rng;
use rnic_tests::raw::{Verbs, ipv4_gid, write};
use rnic_tests::{Appliance, Bystanders, PortSetup, RawPort, Setup, Turn, Wire, poll_until, privileged};
use rnic_wire::{
    FrameRepr, Ipv4, Ipv6, MacAddr, Net, Opcode, ParseError, TableCrc, Transport, VlanTag, VlanTags,
};

#[path = "../../../dataplane/wire/tests/common/mod.rs"]
mod common;
use common::samples;

/// Two appliances on a wire with traffic between them, and a socket to send to the first.
struct Scene {
    a: Appliance,
    b: Appliance,
    bystanders: Bystanders,
    /// At the far end of the wire: frames it sends arrive at `a`, frames of `a` arrive at it.
    far: RawPort,
    /// At the near end: the same for `b`.
    near: RawPort,
    mac: MacAddr,
    /// QPs of `a`.
    qpns: Vec<u32>,
    _wire: Wire,
}

impl Scene {
    fn new() -> Scene {
        let wire = Wire::new();
        let a = Appliance::start_in("appliance a", &wire.a, &Setup::new([PortSetup::veth(0)]));
        let b = Appliance::start_in("appliance b", &wire.b, &Setup::new([PortSetup::veth(1)]));
        let bystanders = Bystanders::start([(&a.socket(), "rnic0"), (&b.socket(), "rnic0")]);
        let mac = MacAddr(a.open("rnic0").query_port().expect("the port is there").mac);
        let qps = a.ctl_json(&["qp"]);
        let qpns: Vec<_> = qps
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|qp| qp["qpn"].as_u64())
            .collect();
        assert!(!qpns.is_empty(), "rnicctl lists no QP: {qps}");
        Scene {
            far: RawPort::open(&wire.b),
            near: RawPort::open(&wire.a),
            mac,
            qpns: qpns.into_iter().map(|qpn| qpn as u32).collect(),
            a,
            b,
            bystanders,
            _wire: wire,
        }
    }

    /// Sends frames to `a`, a few at a time, so that they are not lost in a queue before it.
    fn send(&self, frames: impl IntoIterator<Item = Vec<u8>>) -> u64 {
        let mut sent = 0;
        for frame in frames {
            self.far.send(&frame);
            sent += 1;
            if sent % 64 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        sent
    }

    fn malformed(&self) -> u64 {
        ParseError::NAMES.iter().map(|name| self.a.counter(name)).sum()
    }

    /// Waits until a counter of `a` has grown by so much.
    fn assert_counted(&self, what: &str, before: u64, at_least: u64, count: impl Fn() -> u64) {
        let seen = poll_until(Duration::from_secs(10), || {
            (count() >= before + at_least).then_some(())
        });
        assert!(
            seen.is_some(),
            "{what}: {} after {before}; {at_least} more were due",
            count()
        );
    }

    fn end(mut self) {
        self.bystanders.check();
        self.bystanders.finish();
        self.a.stop();
        self.b.stop();
    }

    /// A frame of `opcode` from a station to one of `a`'s QPs.
    fn frame(&self, rng: &mut Rng, opcode: Opcode, source: u8, qpn: u32) -> Vec<u8> {
        self.frame_with(rng, opcode, source, qpn, |_| ())
    }

    /// The same, changed by `twist` before its ICRC is computed.
    fn frame_with(
        &self,
        rng: &mut Rng,
        opcode: Opcode,
        source: u8,
        qpn: u32,
        twist: impl Fn(&mut FrameRepr),
    ) -> Vec<u8> {
        let mut repr = samples::repr(opcode, samples::v4(), VlanTags::NONE);
        repr.link.dst = self.mac;
        repr.headers.bth.dest_qpn = qpn;
        repr.headers.bth.psn = rnic_wire::Psn::new(rng.next() as u32 & 0xFF_FFFF);
        repr.net = if rng.below(2) == 0 {
            let Net::V4(ip) = samples::v4() else {
                unreachable!("samples::v4 is of version 4")
            };
            Net::V4(Ipv4 {
                src: [10, 0, 0, source].into(),
                dst: [10, 0, 0, 1].into(),
                ..ip
            })
        } else {
            let Net::V6(ip) = samples::v6() else {
                unreachable!("samples::v6 is of version 6")
            };
            let address = |host: u8| [0xFD00, 0, 0, 0, 0, 0, 0, host.into()].into();
            Net::V6(Ipv6 {
                src: address(source),
                dst: address(1),
                ..ip
            })
        };
        twist(&mut repr);
        emit(&repr, &samples::payload(opcode))
    }
}

fn emit(repr: &FrameRepr, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 9014];
    let len = repr
        .emit_frame(&TableCrc, payload, &mut out)
        .expect("a sample can be emitted");
    out.truncate(len);
    out
}

fn flip(rng: &mut Rng, frame: &mut [u8], from: usize) {
    let at = from + rng.below(frame.len() - from);
    frame[at] ^= 1 << rng.below(8);
}

#[test]
fn random_bytes_and_broken_frames_of_every_kind_are_dropped_and_counted() {
    let _turn = Turn::take();
    if !privileged("random_bytes_and_broken_frames") {
        return;
    }
    let mut scene = Scene::new();
    let mut rng = Rng::new(&[21]);
    let malformed = scene.malformed();

    // Random bytes, of any length, behind an address that is right and a type that may be.
    let mac = scene.mac;
    scene.send((0..600).map(|i| {
        let len = 14 + rng.below(if i % 10 == 0 { 4200 } else { 200 });
        let mut frame = rng.bytes(len);
        frame[..6].copy_from_slice(if i % 7 == 0 { &[0xFF; 6] } else { &mac.0 });
        let types = [
            [0x08, 0x00],
            [0x86, 0xDD],
            [0x08, 0x06],
            [0x81, 0x00],
            [0x88, 0xA8],
            [0x00, 0x10],
        ];
        frame[12..14].copy_from_slice(&types[i % types.len()]);
        frame
    }));
    scene.bystanders.check();

    // Frames between Linux hosts and one of every opcode, cut off anywhere, or with bits flipped.
    let frames: Vec<_> = common::captured_frames()
        .into_iter()
        .map(|(_, frame)| frame)
        .collect();
    let frames: Vec<_> = frames
        .into_iter()
        .step_by(7)
        .take(400)
        .chain(samples::all_frames())
        .collect();
    let total = frames.len() as u64;
    scene.send(frames.into_iter().map(|mut frame| {
        frame[..6].copy_from_slice(&mac.0);
        match rng.below(3) {
            0 => frame.truncate(14 + rng.below(frame.len() - 14)),
            1 => (0..3).for_each(|_| flip(&mut rng, &mut frame, 14)),
            _ => {
                let more = rng.below(100);
                frame.extend(rng.bytes(more));
            }
        }
        frame
    }));
    scene.assert_counted("malformed frames", malformed, total / 10, || scene.malformed());
    scene.bystanders.check();
    scene.end();
}

#[test]
fn well_formed_packets_with_a_wrong_icrc_qp_or_address_are_dropped_by_reason() {
    let _turn = Turn::take();
    if !privileged("well_formed_packets_with_a_wrong_icrc") {
        return;
    }
    let scene = Scene::new();
    let mut rng = Rng::new(&[22]);
    let opcodes: Vec<_> = Opcode::all().collect();
    let count = |name: &'static str| scene.a.counter(name);
    let before = |name| (name, count(name));
    let counters = ["icrc_errors", "unknown_qp", "address_mismatch"].map(before);
    let ours = scene.qpns.clone();

    // From the right peer, to a QP that there is, but damaged on the way.
    scene.send((0..400).map(|i| {
        let mut frame = scene.frame(&mut rng, opcodes[i % opcodes.len()], 2, ours[0]);
        let last = frame.len() - 1 - rng.below(4);
        frame[last] ^= 1 << rng.below(8);
        frame
    }));
    // To QPs that nobody has.
    scene.send((0..400).map(|i| {
        let qpn = 0x80_0000 | rng.below(0x7F_FFFF) as u32;
        scene.frame(&mut rng, opcodes[i % opcodes.len()], 2, qpn)
    }));
    // From a station that the QP is not connected to.
    scene.send((0..400).map(|i| scene.frame(&mut rng, opcodes[i % opcodes.len()], 77, ours[0])));
    for (name, before) in counters {
        scene.assert_counted(name, before, 100, || count(name));
    }
    // From the right peer, but on a VLAN that the QP is not on, and of a partition that it is not in.
    let vlan = |repr: &mut FrameRepr| repr.link.tags = VlanTags::one(VlanTag::customer(9));
    let pkey = |repr: &mut FrameRepr| repr.headers.bth.pkey = 0x8123;
    let counters = ["address_mismatch", "pkey_mismatch"].map(before);
    // Of a class that the checker of the capture does not take for the connection's.
    let opcodes: Vec<_> = opcodes
        .into_iter()
        .filter(|opcode| opcode.transport == Transport::Uc)
        .collect();
    scene.send((0..400).map(|i| scene.frame_with(&mut rng, opcodes[i % opcodes.len()], 2, ours[0], vlan)));
    scene.send((0..400).map(|i| scene.frame_with(&mut rng, opcodes[i % opcodes.len()], 2, ours[0], pkey)));
    for (name, before) in counters {
        scene.assert_counted(name, before, 100, || count(name));
    }
    scene.end();
}

#[test]
fn replayed_frames_of_the_connection_change_nothing() {
    let _turn = Turn::take();
    if !privileged("replayed_frames_of_the_connection") {
        return;
    }
    let mut scene = Scene::new();
    let mut rng = Rng::new(&[23]);
    let duplicates = scene.a.counter("duplicate") + scene.b.counter("duplicate");
    for _ in 0..3 {
        // What arrives at the far end came from `a`, and is sent again from the near end, and the reverse.
        for (listen, speak) in [(&scene.far, &scene.near), (&scene.near, &scene.far)] {
            let heard = listen.receive(150, Duration::from_secs(5));
            assert!(heard.len() > 50, "the traffic cannot be heard");
            for frame in heard {
                speak.send(&frame);
                let mut damaged = frame.clone();
                flip(&mut rng, &mut damaged, 42);
                speak.send(&damaged);
            }
        }
        scene.bystanders.check();
    }
    let now = scene.a.counter("duplicate") + scene.b.counter("duplicate");
    assert!(now > duplicates, "no replayed request was taken for a duplicate");
    assert!(scene.a.counter("icrc_errors") + scene.b.counter("icrc_errors") > 0);
    scene.end();
}

#[test]
fn floods_on_the_slow_path_do_not_stop_the_fast_one() {
    let _turn = Turn::take();
    if !privileged("floods_on_the_slow_path") {
        return;
    }
    let mut scene = Scene::new();
    let mut rng = Rng::new(&[24]);
    let mac = scene.mac;
    // Requests for the port's address, from as many stations, good and broken ones.
    let arp = |rng: &mut Rng, i: u32| {
        let station = [2, 0xBB, (i >> 16) as u8, (i >> 8) as u8, i as u8, 1];
        let mut frame = vec![0xFF; 6];
        frame.extend(station);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + (i % 2) as u8]);
        frame.extend(station);
        frame.extend([10, 0, 0, 100 + (i % 100) as u8, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        if i.is_multiple_of(3) {
            flip(rng, &mut frame, 14);
        }
        frame.resize(60, 0);
        frame
    };
    scene.send((0..4000).map(|i| arp(&mut rng, i)).collect::<Vec<_>>());
    scene.bystanders.check();
    // ICMP, ND and anything else that IP can carry.
    scene.send((0..4000).map(|i| {
        let mut frame = mac.0.to_vec();
        frame.extend([2, 0xBB, 0, 0, 0, 1]);
        let len = 40 + rng.below(200);
        let body = rng.bytes(len);
        if i % 2 == 0 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + body.len() as u16).to_be_bytes());
            frame.extend([
                0,
                0,
                0,
                0,
                64,
                [1, 17, 6, rng.next() as u8][i % 4],
                0,
                0,
                10,
                0,
                0,
                9,
                10,
                0,
                0,
                1,
            ]);
            samples::fix_ipv4_checksum(&mut frame);
        } else {
            frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            frame.extend((body.len() as u16).to_be_bytes());
            frame.extend([[58, 17, 0, 43][i % 4], 255]);
            frame.extend([0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            frame.extend([0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
        frame.extend(body);
        frame
    }));
    scene.bystanders.check();
    scene.a.assert_alive();
    scene.end();
}

#[test]
fn packets_forged_in_the_name_of_a_peer_reach_its_own_connection_at_most() {
    let _turn = Turn::take();
    if !privileged("packets_forged_in_the_name_of_a_peer") {
        return;
    }
    let mut scene = Scene::new();
    // Each round's QP has the same peer, which is none.
    scene.a.except(rnic_trace::Rule::SourcePort);
    let mut rng = Rng::new(&[25]);
    let opcodes: Vec<_> = Opcode::all().collect();
    let file = rnic_tests::raw::memfd(1 << 20, rustix::fs::SealFlags::SHRINK, false).unwrap();
    for round in 0..12u32 {
        // Connected to a QP of `b` that is not there; what it receives is forged here.
        let mut verbs = Verbs::open(&scene.a.socket(), 0, 64);
        let mr = verbs.mr(&file, 1 << 20, 0);
        let qp = verbs.qp(16);
        verbs.connect(&qp, 0x70_0000, ipv4_gid("10.0.0.2"));
        for id in 0..8 {
            verbs.post(&qp, qp.rq, &write(id, 0, 1 << 16, mr.lkey, 0, 0));
        }
        let mut psn = 100;
        let frames: Vec<_> = (0..150)
            .map(|_| {
                let opcode = opcodes[rng.below(opcodes.len())];
                let mut repr = samples::repr(opcode, samples::v4(), VlanTags::NONE);
                repr.link.dst = scene.mac;
                let Net::V4(ip) = samples::v4() else {
                    unreachable!("samples::v4 is of version 4")
                };
                repr.net = Net::V4(Ipv4 {
                    src: [10, 0, 0, 2].into(),
                    dst: [10, 0, 0, 1].into(),
                    ..ip
                });
                let headers = &mut repr.headers;
                headers.bth.dest_qpn = qp.made.qpn;
                let stray = if rng.below(4) == 0 {
                    rng.below(1 << 24) as u32
                } else {
                    0
                };
                headers.bth.psn = rnic_wire::Psn::new((psn + stray) & 0xFF_FFFF);
                psn += u32::from(rng.below(3) > 0);
                if let Some(reth) = &mut headers.reth {
                    reth.rkey = mr.rkey;
                    reth.va = [0, 1 << 19, (1 << 20) - 1, u64::MAX - 5][rng.below(4)];
                    reth.dma_len = [0, 1, 1000, 1 << 20, 1 << 31, u32::MAX][rng.below(6)];
                }
                let len = [0, 1, 1023, 1024, 1025, 4096, 8000][rng.below(7)];
                emit(&repr, &rng.bytes(if opcode.has_payload() { len } else { 0 }))
            })
            .collect();
        scene.send(frames);
        if round % 4 == 0 {
            scene.bystanders.check();
        }
    }
    scene.bystanders.check();
    scene.end();
}
