//! Bad requests on the control socket: each is refused with a reason, and nobody else notices.
use std::os::fd::{AsFd, OwnedFd};

use rnic_abi::{
    ABI_VERSION, CONTROL_MAGIC, CreateCq, CreateQp, DeviceArg, GidArg, HandleArg, HandleReply, Hello,
    MAX_PACKET, ModifyCq, ModifyQp, Op, PkeyArg, RegMr, RequestHeader, ResizeCq, ResizeCqDone,
};
use rnic_tests::probe::Rng;
use rnic_tests::raw::{Line, Verbs, header, memfd};
use rnic_tests::{Scene, Turn};
use rustix::fs::SealFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

/// Sends a packet that must be refused, with this errno and a text that contains this.
#[track_caller]
fn refused(line: &Line, packet: &[u8], errno: Errno, text: &str) {
    line.send(packet, &[]).expect("the daemon listens");
    let reply = line.receive().expect("the daemon answers");
    assert_eq!(reply.errno(), errno.raw_os_error(), "{}", reply.text());
    assert!(reply.text().contains(text), "{:?} lacks {text:?}", reply.text());
}

#[test]
fn packets_that_are_no_request_are_refused_with_the_reason_and_the_session_goes_on() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let mut line = Line::greet(&scene.socket).0;
    let body = DeviceArg::default();
    let next = line.sequence + 1;
    let good = header(Op::AllocPd as u16, line.session, next, size_of::<DeviceArg>());
    let packet = |header: RequestHeader| [header.as_bytes(), body.as_bytes()].concat();
    let whole = packet(good);

    for len in [1, 4, size_of::<RequestHeader>() - 1] {
        refused(&line, &whole[..len], Errno::PROTO, "bytes");
    }
    refused(&line, &whole[..whole.len() - 1], Errno::PROTO, "body_len");
    refused(&line, &[&whole[..], &[0]].concat(), Errno::PROTO, "body_len");
    for len in [MAX_PACKET + 1, 60_000] {
        let mut long = whole.clone();
        long.resize(len, 0xEE);
        refused(&line, &long, Errno::MSGSIZE, "longer than");
    }
    refused(
        &line,
        &packet(RequestHeader {
            magic: !CONTROL_MAGIC,
            ..good
        }),
        Errno::PROTO,
        "magic",
    );
    for version in [0, ABI_VERSION as u16 + 1, u16::MAX] {
        refused(
            &line,
            &packet(RequestHeader { version, ..good }),
            Errno::PROTONOSUPPORT,
            "ABI version",
        );
    }
    for op in [0, 9, 25, 999, u16::MAX] {
        refused(
            &line,
            &packet(RequestHeader { op, ..good }),
            Errno::NOSYS,
            "not known",
        );
    }
    refused(
        &line,
        &packet(RequestHeader { reserved: 1, ..good }),
        Errno::PROTO,
        "reserved",
    );
    for session in [0, line.session ^ 1, line.session + 1, u64::MAX] {
        refused(
            &line,
            &packet(RequestHeader { session, ..good }),
            Errno::PROTO,
            "session",
        );
    }
    for sequence in [0, next + 1, next + 2, u64::MAX] {
        refused(
            &line,
            &packet(RequestHeader { sequence, ..good }),
            Errno::ILSEQ,
            "sequence",
        );
    }
    let hello = Hello::default();
    let again = header(Op::Hello as u16, 0, next, size_of::<Hello>());
    refused(
        &line,
        &[again.as_bytes(), hello.as_bytes()].concat(),
        Errno::ISCONN,
        "hello",
    );

    // None of them counted: the next number is still the next.
    let pd: HandleReply = line.request(Op::AllocPd, &body, &[]).body();
    assert_ne!(pd.handle, 0);
    drop(line);
    scene.end();
}

#[test]
fn a_request_before_hello_is_refused_and_a_replayed_one_is_answered_as_before() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let line = Line::connect(&scene.socket);
    let early = header(Op::AllocPd as u16, 0, 1, size_of::<DeviceArg>());
    refused(
        &line,
        &[early.as_bytes(), DeviceArg::default().as_bytes()].concat(),
        Errno::PROTO,
        "hello",
    );
    drop(line);

    let mut line = Line::greet(&scene.socket).0;
    let first = line.request(Op::AllocPd, &DeviceArg::default(), &[]);
    let before = scene.appliance.counts();
    line.sequence -= 1;
    let second = line.request(Op::AllocPd, &DeviceArg::default(), &[]);
    assert_eq!((first.header, first.body), (second.header, second.body));
    assert_eq!(scene.appliance.counts(), before, "the replay made a second PD");
    drop(line);
    scene.end();
}

#[test]
fn descriptors_where_none_or_one_belong_are_closed_and_refused() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let mut verbs = Verbs::open(&scene.socket, 0, 64);
    let file = memfd(4096, SealFlags::SHRINK, false).unwrap();
    let many: Vec<_> = (0..253).map(|_| file.as_fd()).collect();
    let body = RegMr {
        pd: verbs.pd(),
        access: 1,
        fd_offset: 0,
        length: 4096,
        iova: 0,
    };
    for count in [0, 2, 3, 253] {
        let reply = verbs.line.request(Op::RegMr, &body, &many[..count]);
        assert_ne!(reply.errno(), 0);
        assert!(reply.text().contains("descriptors"), "{}", reply.text());
        // A request that is none does not count.
        verbs.line.sequence -= 1;
    }
    for count in [1, 253] {
        let reply = verbs
            .line
            .request(Op::AllocPd, &DeviceArg::default(), &many[..count]);
        assert_ne!(reply.errno(), 0);
        verbs.line.sequence -= 1;
        // With garbage, too.
        verbs.line.send(b"garbage", &many[..count]).unwrap();
        assert_ne!(verbs.line.receive().unwrap().errno(), 0);
    }
    assert_eq!(verbs.mr(&file, 4096, 0).reserved, 0);
    drop(verbs);
    scene.end();
}

#[test]
fn random_requests_are_answered_or_hung_up_on_and_harm_nobody() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let file = memfd(8192, SealFlags::SHRINK, false).unwrap();
    let pipe = rustix::pipe::pipe().unwrap();
    let mut rng = Rng::new(&[2]);
    for round in 0..20 {
        let mut verbs = Verbs::open(&scene.socket, round % 2, 16);
        verbs.mr(&file, 4096, 0);
        let qp = verbs.qp(8);
        let handles = [verbs.pd(), qp.made.handle, 0];
        for _ in 0..60 {
            random_request(&mut rng, &mut verbs.line, &handles, &[&file, &pipe.0, &pipe.1]);
        }
    }
    scene.end();
}

/// Random bytes, or a random body under a header that is right, of the right length more often than not.
fn random_request(rng: &mut Rng, line: &mut Line, handles: &[u32], files: &[&OwnedFd]) {
    const OPS: [(Op, usize); 21] = [
        (Op::QueryDevice, size_of::<DeviceArg>()),
        (Op::QueryPort, size_of::<DeviceArg>()),
        (Op::QueryGid, size_of::<GidArg>()),
        (Op::AllocPd, size_of::<DeviceArg>()),
        (Op::DeallocPd, size_of::<HandleArg>()),
        (Op::RegMr, size_of::<RegMr>()),
        (Op::DeregMr, size_of::<HandleArg>()),
        (Op::CreateCompChannel, 0),
        (Op::DestroyCompChannel, size_of::<HandleArg>()),
        (Op::CreateCq, size_of::<CreateCq>()),
        (Op::DestroyCq, size_of::<HandleArg>()),
        (Op::CreateQp, size_of::<CreateQp>()),
        (Op::ModifyQp, size_of::<ModifyQp>()),
        (Op::QueryQp, size_of::<HandleArg>()),
        (Op::DestroyQp, size_of::<HandleArg>()),
        (Op::ResizeCq, size_of::<ResizeCq>()),
        (Op::ResizeCqDone, size_of::<ResizeCqDone>()),
        (Op::ModifyCq, size_of::<ModifyCq>()),
        (Op::QueryCq, size_of::<HandleArg>()),
        (Op::QueryRtValues, size_of::<DeviceArg>()),
        (Op::QueryPkey, size_of::<PkeyArg>()),
    ];
    let (op, len) = OPS[rng.below(OPS.len())];
    let mut packet = Vec::new();
    match rng.below(8) {
        0 => {
            let len = 1 + rng.below(200);
            packet = rng.bytes(len);
        }
        kind => {
            let len = if kind == 1 { rng.below(300) } else { len };
            packet.extend(header(op as u16, line.session, line.sequence + 1, len).as_bytes());
            let mut body = rng.bytes(len);
            // Small numbers reach further than random ones.
            for word in body.chunks_exact_mut(4) {
                match rng.below(4) {
                    0 => word.copy_from_slice(&(rng.below(40) as u32).to_le_bytes()),
                    1 => word.copy_from_slice(&handles[rng.below(handles.len())].to_le_bytes()),
                    2 => word.fill(0),
                    _ => {}
                }
            }
            packet.extend(body);
        }
    }
    let count = if op == Op::RegMr { 1 } else { rng.below(8) / 6 };
    let fds: Vec<_> = (0..count)
        .map(|_| files[rng.below(files.len())].as_fd())
        .collect();
    line.send(&packet, &fds).expect("the daemon listens");
    let reply = line.receive().expect("no request is a reason to hang up");
    // Requests that were carried out, with success or without, count; those that were none do not.
    if reply.header.sequence == line.sequence + 1 && reply.header.session == line.session {
        line.sequence += u64::from(counts(line));
    }
}

/// Whether the last request counted: then the next but one is out of order.
fn counts(line: &Line) -> bool {
    let probe = header(
        Op::QueryDevice as u16,
        line.session,
        line.sequence + 3,
        size_of::<DeviceArg>(),
    );
    let packet = [probe.as_bytes(), DeviceArg::default().as_bytes()].concat();
    line.send(&packet, &[]).expect("the daemon listens");
    let reply = line.receive().expect("the daemon answers");
    assert_eq!(reply.errno(), Errno::ILSEQ.raw_os_error());
    reply.text().contains(&format!("must be {}", line.sequence + 2))
}

#[test]
fn a_client_that_never_reads_its_replies_keeps_nobody_waiting() {
    let _turn = Turn::take();
    let mut scene = Scene::new();
    let lines: Vec<_> = (0..4).map(|_| Line::greet(&scene.socket).0).collect();
    for line in &lines {
        for sequence in line.sequence + 1..5000 {
            let request = header(
                Op::QueryDevice as u16,
                line.session,
                sequence,
                size_of::<DeviceArg>(),
            );
            let packet = [request.as_bytes(), DeviceArg::default().as_bytes()].concat();
            // The daemon may stop reading, or hang up; it may not wait.
            if try_send(line, &packet).is_err() {
                break;
            }
        }
    }
    scene.bystanders.check();
    let mut other = Line::greet(&scene.socket).0;
    assert_eq!(other.request(Op::AllocPd, &DeviceArg::default(), &[]).errno(), 0);
    drop((lines, other));
    scene.end();
}

fn try_send(line: &Line, packet: &[u8]) -> Result<(), Errno> {
    use rustix::net::{SendFlags, send};
    send(line, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}

#[test]
fn connections_that_say_nothing_or_vanish_midway_leave_nothing_behind() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let silent: Vec<_> = (0..30).map(|_| Line::connect(&scene.socket)).collect();
    for _ in 0..50 {
        let line = Line::connect(&scene.socket);
        let hello = header(Op::Hello as u16, 0, 1, size_of::<Hello>());
        line.send(&[hello.as_bytes(), Hello::default().as_bytes()].concat(), &[])
            .unwrap();
        // Gone before the answer.
    }
    for _ in 0..10 {
        let mut verbs = Verbs::open(&scene.socket, 0, 16);
        verbs.qp(8);
        let body = CreateCq {
            depth: 8,
            ..CreateCq::default()
        };
        let request = header(
            Op::CreateCq as u16,
            verbs.line.session,
            verbs.line.sequence + 1,
            size_of::<CreateCq>(),
        );
        verbs
            .line
            .send(&[request.as_bytes(), body.as_bytes()].concat(), &[])
            .unwrap();
    }
    drop(silent);
    scene.end();
}
