//! Extended reliable connections through the client library, on a whole appliance.
use std::fs::File;
use std::time::Duration;

use rnic::{
    Access, Batch, Completion, ConnectOptions, Context, Cq, EventKind, EventObject, Mr, Opcode, Pd, Qp,
    QpConfig, QpState, Srq, Status, TargetQp, Xrcd, XrcdOpen,
};
use rnic_tests::{Appliance, Setup, Turn};

const PATHS: [&str; 2] = ["wire", "direct"];
const SOON: Option<Duration> = Some(Duration::from_secs(20));
/// Bytes of a message, more than one packet of them.
const LEN: usize = 5000;

fn appliance(path: &str) -> Appliance {
    let setup = Setup::back_to_back().cores(2);
    Appliance::start(&setup.with_ports(&format!("loopback: {path}")))
}

/// The file that a domain stands for.
fn file(appliance: &Appliance) -> File {
    let path = appliance.socket().with_file_name("domain");
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(path)
        .unwrap()
}

/// One of several processes that share a domain on `rnic1`: its SRQ, and its hold on the target QP.
struct Receiver {
    srq: Srq,
    cq: Cq,
    memory: Mr,
    target: TargetQp,
    _pd: Pd,
    context: Context,
}

impl Receiver {
    /// With a target QP of its own, or that of another.
    fn new(appliance: &Appliance, how: XrcdOpen, target: Option<u32>) -> Receiver {
        let context = Context::open(appliance.socket(), "rnic1").unwrap();
        let xrcd = context.open_xrcd(file(appliance), how).unwrap();
        Receiver::of(context, &xrcd, target)
    }

    fn of(context: Context, xrcd: &Xrcd, target: Option<u32>) -> Receiver {
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let srq = pd.create_xrc_srq(xrcd, &cq, 8, 2).unwrap();
        let rights = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let memory = pd.alloc_mr(3 * 8192, rights).unwrap();
        let target = match target {
            Some(qpn) => xrcd.open_target(qpn).unwrap(),
            None => xrcd.create_target().unwrap(),
        };
        Receiver {
            srq,
            cq,
            memory,
            target,
            _pd: pd,
            context,
        }
    }

    fn post(&self, wr_id: u64) {
        let place = self.memory.slice(0..LEN);
        let parts = [place.slice(0..7), place.slice(7..LEN)];
        self.srq
            .post_recv(|batch| {
                batch.recv(parts).wr_id(wr_id);
            })
            .unwrap();
    }

    fn wait_for(&self, kind: EventKind) {
        let events = self.context.async_events();
        loop {
            let event = events.next(SOON).unwrap().expect("an event");
            if event.kind == kind {
                assert_eq!(event.object, EventObject::Qp(self.target.qpn()));
                return;
            }
        }
    }
}

/// The initiator on `rnic0`.
struct Sender {
    qp: Qp,
    cq: Cq,
    memory: Mr,
}

impl Sender {
    fn connect(appliance: &Appliance, target: &TargetQp) -> Sender {
        let context = Context::open(appliance.socket(), "rnic0").unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let config = QpConfig::xrc_ini(&cq).sq_sig_all(true).max_inline(928).max_sge(3);
        let qp = pd.create_qp(config).unwrap();
        let options = ConnectOptions::default();
        let (ours, theirs) = (qp.endpoint(&options).unwrap(), target.endpoint(&options).unwrap());
        target.connect(&ours, &options).unwrap();
        qp.connect(&theirs, &options).unwrap();
        let memory = pd.alloc_mr(2 * 8192, Access::LOCAL_WRITE).unwrap();
        memory.write_at(0, &bytes());
        Sender { qp, cq, memory }
    }

    fn post(&self, build: impl FnOnce(&mut Batch<'_>)) -> Completion {
        self.qp.post(build).unwrap();
        one(&self.cq)
    }
}

fn bytes() -> Vec<u8> {
    (0..LEN).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn one(cq: &Cq) -> Completion {
    let done = cq.wait_vec(1, SOON).unwrap();
    done.into_iter().next().expect("a completion")
}

#[test]
fn one_connection_serves_the_srqs_of_several_processes_whose_domain_is_a_file() {
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        let first = Receiver::new(&appliance, XrcdOpen::CreateNew, None);
        let second = Receiver::new(&appliance, XrcdOpen::Existing, Some(first.target.qpn()));
        let domains = [&first, &second].map(|receiver| receiver.target.xrcd().number());
        assert_eq!(domains[0], domains[1]);
        let sender = Sender::connect(&appliance, &first.target);
        assert_eq!(second.target.query().unwrap().state, QpState::Rts);
        let local = sender.memory.slice(0..LEN);
        for (number, receiver) in [&first, &second, &first].into_iter().enumerate() {
            let srqn = receiver.srq.number();
            let target = receiver.target.qpn();
            receiver.post(number as u64);
            let sent = sender.post(|batch| {
                batch.send(local.clone()).imm(77).to_srq(srqn);
            });
            assert_eq!((sent.status, sent.qpn), (Status::Success, sender.qp.qpn()));
            let got = one(&receiver.cq).ok().unwrap();
            assert_eq!(
                (got.wr_id, got.byte_len as usize, got.imm),
                (number as u64, LEN, Some(77))
            );
            assert_eq!(
                (got.srqn, got.qpn, got.src_qpn),
                (Some(srqn), target, sender.qp.qpn())
            );
            assert_eq!(receiver.memory.read_vec(0, LEN), bytes());
            // Keys are those of the SRQ's protection domain, whichever operation names them.
            let remote = receiver.memory.remote();
            receiver.post(9);
            sender
                .post(|batch| {
                    batch.write(local.clone(), remote.at(8192)).imm(5).to_srq(srqn);
                })
                .ok()
                .unwrap();
            let got = one(&receiver.cq).ok().unwrap();
            assert_eq!(
                (got.opcode, got.imm, got.srqn),
                (Opcode::RecvWriteImm, Some(5), Some(srqn))
            );
            assert_eq!(receiver.memory.read_vec(8192, LEN), bytes());
            let back = sender.memory.slice(8192..8192 + LEN);
            back.write_at(0, &vec![0; LEN]);
            sender
                .post(|batch| {
                    batch.read(back.clone(), remote.at(8192)).to_srq(srqn);
                })
                .ok()
                .unwrap();
            assert_eq!(sender.memory.read_vec(8192, LEN), bytes());
            receiver
                .memory
                .slice(16384..16392)
                .write_at(0, &5u64.to_ne_bytes());
            sender
                .post(|batch| {
                    batch
                        .fetch_add(back.slice(0..8), remote.at(16384), 3)
                        .to_srq(srqn);
                })
                .ok()
                .unwrap();
            assert_eq!(sender.memory.read_vec(8192, 8), 5u64.to_ne_bytes());
            assert_eq!(receiver.memory.read_vec(16384, 8), 8u64.to_ne_bytes());
        }
        // Every form of a work request has room for its SRQ.
        let srqn = second.srq.number();
        for len in [0, 1, 32, 33, 96, 97, 928] {
            second.post(len as u64);
            sender
                .post(|batch| {
                    batch.send_inline(&bytes()[..len]).to_srq(srqn);
                })
                .ok()
                .unwrap();
            let got = one(&second.cq).ok().unwrap();
            assert_eq!((got.wr_id, got.byte_len as usize), (len as u64, len));
            assert_eq!(second.memory.read_vec(0, len), bytes()[..len]);
        }
        let parts = [
            local.slice(0..1000),
            local.slice(1000..1001),
            local.slice(1001..LEN),
        ];
        second.post(3);
        sender
            .post(|batch| {
                batch.send(parts).to_srq(srqn);
            })
            .ok()
            .unwrap();
        one(&second.cq).ok().unwrap();
        assert_eq!(second.memory.read_vec(0, LEN), bytes());
        drop((first, second, sender));
        appliance.stop();
    }
}

#[test]
fn a_target_qp_lives_as_long_as_anyone_holds_it_and_a_domain_too() {
    let _turn = Turn::take();
    let appliance = appliance("wire");
    let first = Receiver::new(&appliance, XrcdOpen::Create, None);
    let second = Receiver::new(&appliance, XrcdOpen::Create, Some(first.target.qpn()));
    let sender = Sender::connect(&appliance, &first.target);
    let send = |srqn| {
        let local = sender.memory.slice(0..LEN);
        sender.post(|batch| {
            batch.send(local).to_srq(srqn);
        })
    };
    let gone = first.srq.number();
    // Its maker leaves, with its SRQ.
    drop(first);
    second.post(1);
    assert_eq!(send(second.srq.number()).status, Status::Success);
    assert_eq!(one(&second.cq).ok().unwrap().wr_id, 1);
    let failed = send(gone);
    assert_eq!(failed.status, Status::RemoteInvalidRequest);
    second.wait_for(EventKind::QpRequestError);
    let cause = second.target.query().unwrap().cause.expect("why");
    assert!(cause.to_string().contains("no such XRC SRQ"), "{cause}");
    let context = Context::open(appliance.socket(), "rnic1").unwrap();
    let errno = |error: rnic::Error| match error {
        rnic::Error::Daemon { errno, .. } => errno,
        other => panic!("{other}"),
    };
    let exists = context
        .open_xrcd(file(&appliance), XrcdOpen::CreateNew)
        .unwrap_err();
    assert_eq!(errno(exists), libc_errno::EEXIST);
    let qpn = second.target.qpn();
    drop(second);
    let ended = context
        .open_xrcd(file(&appliance), XrcdOpen::Existing)
        .unwrap_err();
    assert_eq!(errno(ended), libc_errno::ENOENT);
    let again = context.open_xrcd(file(&appliance), XrcdOpen::CreateNew).unwrap();
    assert_eq!(errno(again.open_target(qpn).unwrap_err()), libc_errno::ENOENT);
    drop((again, context, sender));
    appliance.stop();
}

/// Numbers of Linux.
mod libc_errno {
    pub const ENOENT: i32 = 2;
    pub const EEXIST: i32 = 17;
}

#[test]
fn events_of_a_target_qp_are_told_to_everyone_who_holds_it() {
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        let first = Receiver::new(&appliance, XrcdOpen::Create, None);
        let second = Receiver::new(&appliance, XrcdOpen::Create, Some(first.target.qpn()));
        let sender = Sender::connect(&appliance, &first.target);
        // A domain of its own, on the same device.
        let context = Context::open(appliance.socket(), "rnic1").unwrap();
        let foreign = Receiver::of(context.clone(), &context.alloc_xrcd().unwrap(), None);
        foreign.post(1);
        let failed = sender.post(|batch| {
            let local = sender.memory.slice(0..LEN);
            batch.send(local).to_srq(foreign.srq.number());
        });
        assert_eq!(failed.status, Status::RemoteInvalidRequest);
        for holder in [&first, &second] {
            holder.wait_for(EventKind::QpRequestError);
            assert_eq!(holder.target.query().unwrap().state, QpState::Error);
        }
        assert_eq!(foreign.cq.poll(&mut [Completion::default()]), 0);
        // Another one, connected by who has not made it.
        let made = first.target.xrcd().create_target().unwrap();
        let opened = second.target.xrcd().open_target(made.qpn()).unwrap();
        let sender = Sender::connect(&appliance, &opened);
        first.post(4);
        sender
            .post(|batch| {
                let local = sender.memory.slice(0..LEN);
                batch.send(local).to_srq(first.srq.number());
            })
            .ok()
            .unwrap();
        assert_eq!(one(&first.cq).ok().unwrap().wr_id, 4);
        second.target.reset().unwrap();
        assert_eq!(first.target.query().unwrap().state, QpState::Reset);
        drop((made, opened));
        drop((first, second, foreign, context, sender));
        appliance.stop();
    }
}

#[test]
fn keys_of_another_protection_domain_than_the_srqs_are_refused() {
    let _turn = Turn::take();
    let appliance = appliance("wire");
    let first = Receiver::new(&appliance, XrcdOpen::Create, None);
    let second = Receiver::new(&appliance, XrcdOpen::Create, Some(first.target.qpn()));
    let sender = Sender::connect(&appliance, &first.target);
    let failed = sender.post(|batch| {
        let local = sender.memory.slice(0..LEN);
        batch
            .write(local, second.memory.remote())
            .to_srq(first.srq.number());
    });
    assert_eq!(failed.status, Status::RemoteAccess);
    first.wait_for(EventKind::QpAccessError);
    second.wait_for(EventKind::QpAccessError);
    assert_eq!(second.memory.read_vec(0, LEN), vec![0; LEN]);
    drop((first, second, sender));
    appliance.stop();
}

#[test]
fn whom_a_request_is_for_has_to_be_said_and_only_over_xrc() {
    let _turn = Turn::take();
    let appliance = appliance("direct");
    let receiver = Receiver::new(&appliance, XrcdOpen::Create, None);
    let sender = Sender::connect(&appliance, &receiver.target);
    let refused = sender.qp.post(|batch| {
        batch.send(sender.memory.slice(0..1));
    });
    assert!(refused.unwrap_err().to_string().contains("to_srq"));
    let refused = sender.qp.post(|batch| {
        batch.send(sender.memory.slice(0..1)).to_srq(1 << 24);
    });
    assert!(refused.unwrap_err().to_string().contains("24 bits"));
    assert!(
        sender
            .qp
            .post_recv(|_| {})
            .unwrap_err()
            .to_string()
            .contains("receives nothing")
    );
    let pd = sender.qp.pd();
    let cq = pd.context().create_cq(8).unwrap();
    let rc = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
    let other = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
    let options = ConnectOptions::default();
    rc.connect(&other.endpoint(&options).unwrap(), &options).unwrap();
    let refused = rc.post(|batch| {
        batch.send(sender.memory.slice(0..1)).to_srq(5);
    });
    assert!(refused.unwrap_err().to_string().contains("only an XRC initiator"));
    // An XRC SRQ serves no other QP.
    let config = QpConfig::new(&receiver.cq, &receiver.cq).srq(&receiver.srq);
    let refused = receiver._pd.create_qp(config).unwrap_err();
    assert!(refused.to_string().contains("XRC SRQ"), "{refused}");
    drop((rc, other, cq, receiver, sender));
    appliance.stop();
}
