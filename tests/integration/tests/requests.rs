//! What a work request may ask for, on every type of QP.
use std::time::Duration;

use rnic::{
    Access, AddressVector, Ah, Arm, Batch, Completion, ConnectOptions, Context, Cq, Error, Mr, MrSlice, Pd,
    Qp, QpConfig, QpType, Status, Wr, op,
};
use rnic_tests::{Appliance, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
const NOW: Option<Duration> = Some(Duration::ZERO);
const QKEY: u32 = 0x1111_1111;
const TYPES: [QpType; 3] = [QpType::Rc, QpType::Uc, QpType::Ud];

struct End {
    context: Context,
    pd: Pd,
    send_cq: Cq,
    recv_cq: Cq,
    qp: Qp,
    mr: Mr,
}

/// A QP that sends to another, of any type.
struct Pair {
    a: End,
    b: End,
    ah: Ah,
}

fn end(appliance: &Appliance, device: &str, qp_type: QpType, all: bool) -> End {
    let context = appliance.open(device);
    let pd = context.alloc_pd().unwrap();
    let (send_cq, recv_cq) = (context.create_cq(64).unwrap(), context.create_cq(64).unwrap());
    let config = QpConfig::new(&send_cq, &recv_cq).qp_type(qp_type);
    let config = config.max_sge(32).max_inline(928).max_send_wr(16).max_recv_wr(16);
    let qp = pd.create_qp(config.sq_sig_all(all)).unwrap();
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
    let mr = pd.alloc_mr(16 << 10, access).unwrap();
    End {
        context,
        pd,
        send_cq,
        recv_cq,
        qp,
        mr,
    }
}

impl Pair {
    fn new(appliance: &Appliance, qp_type: QpType) -> Pair {
        Self::signalling(appliance, qp_type, false)
    }

    fn signalling(appliance: &Appliance, qp_type: QpType, all: bool) -> Pair {
        let [a, b] = ["rnic0", "rnic1"].map(|device| end(appliance, device, qp_type, all));
        let options = ConnectOptions::default();
        match qp_type {
            QpType::Ud => [&a, &b]
                .into_iter()
                .for_each(|end| end.qp.activate(QKEY).unwrap()),
            _ => {
                let [pa, pb] = [&a, &b].map(|end| end.qp.endpoint(&options).unwrap());
                a.qp.connect(&pb, &options).unwrap();
                b.qp.connect(&pa, &options).unwrap();
            }
        }
        let vector = AddressVector::to(b.context.gid(0).unwrap().gid);
        let ah = a.pd.create_ah(&vector).unwrap();
        Pair { a, b, ah }
    }

    fn is_datagram(&self) -> bool {
        self.a.qp.qp_type() == QpType::Ud
    }

    fn send<'b, 'q>(&self, batch: &'b mut Batch<'q>, local: &[MrSlice]) -> Wr<'b, 'q, op::Send> {
        match self.is_datagram() {
            true => batch.send_to(local, &self.ah, self.b.qp.qpn(), QKEY),
            false => batch.send(local),
        }
    }

    fn send_inline<'b, 'q>(&self, batch: &'b mut Batch<'q>, payload: &[u8]) -> Wr<'b, 'q, op::Send> {
        match self.is_datagram() {
            true => batch.send_inline_to(payload, &self.ah, self.b.qp.qpn(), QKEY),
            false => batch.send_inline(payload),
        }
    }

    fn receive(&self, local: &[MrSlice]) {
        self.b
            .qp
            .post_recv(|batch| {
                batch.recv(local);
            })
            .unwrap();
    }

    /// Bytes in front of a message: the GRH area of a datagram.
    fn before(&self) -> usize {
        if self.is_datagram() { 40 } else { 0 }
    }
}

fn one(cq: &Cq) -> Completion {
    cq.wait_vec(1, SOON).unwrap()[0]
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(37) ^ (at >> 8) as u8)
        .collect()
}

#[test]
fn thirty_two_entries_are_gathered_and_scattered_and_no_more() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    for qp_type in TYPES {
        let pair = Pair::new(&appliance, qp_type);
        pair.a.mr.write_at(0, &pattern(16 << 10));
        let slices = |mr: &Mr, len: usize| -> Vec<MrSlice> {
            // Backwards, and apart from each other.
            (0..32).rev().map(|i| mr.slice(i * 300..i * 300 + len)).collect()
        };
        // Of different lengths, so that nothing ends where something begins.
        let (from, into) = (slices(&pair.a.mr, 99), slices(&pair.b.mr, 101));
        pair.receive(&into);
        pair.a
            .qp
            .post(|batch| {
                pair.send(batch, &from).signaled();
            })
            .unwrap();
        one(&pair.a.send_cq).ok().unwrap();
        let got = one(&pair.b.recv_cq).ok().unwrap();
        let sent: Vec<u8> = from.iter().flat_map(|slice| slice.read_vec(0, 99)).collect();
        assert_eq!(got.byte_len as usize, pair.before() + sent.len());
        let there: Vec<u8> = into.iter().flat_map(|slice| slice.read_vec(0, 101)).collect();
        assert_eq!(there[pair.before()..][..sent.len()], sent, "{qp_type:?}");
        let many = vec![pair.a.mr.slice(..1); 33];
        let refused = pair.a.qp.post(|batch| {
            pair.send(batch, &many);
        });
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    appliance.stop();
}

#[test]
fn as_much_goes_inline_as_the_qp_was_made_for_and_no_more() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let payload = pattern(929);
    for qp_type in TYPES {
        let pair = Pair::new(&appliance, qp_type);
        for len in [0, 1, 32, 33, 928] {
            pair.receive(&[pair.b.mr.slice(..2000)]);
            pair.a
                .qp
                .post(|batch| {
                    pair.send_inline(batch, &payload[..len]).signaled();
                })
                .unwrap();
            one(&pair.a.send_cq).ok().unwrap();
            let got = one(&pair.b.recv_cq).ok().unwrap();
            assert_eq!(got.byte_len as usize, pair.before() + len);
            assert_eq!(
                pair.b.mr.read_vec(pair.before(), len),
                payload[..len],
                "{qp_type:?}"
            );
        }
        let refused = pair.a.qp.post(|batch| {
            pair.send_inline(batch, &payload);
        });
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("929 inline bytes"), "{text}");
    }
    appliance.stop();
}

#[test]
fn unsignalled_requests_complete_with_the_next_signalled_one() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    for qp_type in TYPES {
        let pair = Pair::new(&appliance, qp_type);
        // More than the queue holds at once: what was completed makes room.
        for round in 0..4 {
            for _ in 0..8 {
                pair.receive(&[pair.b.mr.slice(..100)]);
            }
            pair.a
                .qp
                .post(|batch| {
                    for wr_id in 0..8 {
                        let wr = pair.send_inline(batch, b"x").wr_id(round * 8 + wr_id);
                        if wr_id == 7 {
                            wr.signaled();
                        }
                    }
                })
                .unwrap();
            assert_eq!(
                one(&pair.a.send_cq).ok().unwrap().wr_id,
                round * 8 + 7,
                "{qp_type:?}"
            );
            for _ in 0..8 {
                one(&pair.b.recv_cq).ok().unwrap();
            }
        }
        // In error each of them completes.
        pair.a.qp.fail().unwrap();
        pair.a
            .qp
            .post(|batch| {
                for wr_id in 100..102 {
                    pair.send_inline(batch, b"x").wr_id(wr_id);
                }
            })
            .unwrap();
        for wr_id in 100..102 {
            let flushed = one(&pair.a.send_cq);
            assert_eq!((flushed.wr_id, flushed.status), (wr_id, Status::Flushed));
        }
        let all = Pair::signalling(&appliance, qp_type, true);
        for _ in 0..3 {
            all.receive(&[all.b.mr.slice(..100)]);
        }
        all.a
            .qp
            .post(|batch| {
                for wr_id in 0..3 {
                    all.send_inline(batch, b"x").wr_id(wr_id);
                }
            })
            .unwrap();
        for wr_id in 0..3 {
            assert_eq!(one(&all.a.send_cq).ok().unwrap().wr_id, wr_id);
        }
    }
    appliance.stop();
}

#[test]
fn a_fence_holds_up_nothing_on_types_without_reads() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    for qp_type in [QpType::Uc, QpType::Ud] {
        let pair = Pair::new(&appliance, qp_type);
        for wr_id in 0..3 {
            pair.receive(&[pair.b.mr.slice(..100)]);
            pair.a
                .qp
                .post(|batch| {
                    pair.send_inline(batch, b"fenced").wr_id(wr_id).fence().signaled();
                })
                .unwrap();
            assert_eq!(one(&pair.a.send_cq).ok().unwrap().wr_id, wr_id);
            one(&pair.b.recv_cq).ok().unwrap();
        }
    }
    appliance.stop();
}

#[test]
fn only_solicited_messages_fire_what_is_armed_for_them() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    for qp_type in TYPES {
        let pair = Pair::new(&appliance, qp_type);
        for _ in 0..3 {
            pair.receive(&[pair.b.mr.slice(..100)]);
        }
        let cq = &pair.b.recv_cq;
        let mut out = [Completion::default(); 4];
        cq.arm(Arm::Solicited);
        for solicited in [false, true] {
            pair.a
                .qp
                .post(|batch| {
                    let wr = pair.send_inline(batch, b"x");
                    if solicited {
                        wr.solicited();
                    }
                })
                .unwrap();
            let fired = match solicited {
                // It has come, and woken nobody.
                false => {
                    assert_eq!(cq.spin(&mut out, SOON).unwrap(), 1);
                    cq.channel().next(NOW).unwrap()
                }
                true => cq.channel().next(SOON).unwrap(),
            };
            assert_eq!(fired.is_some(), solicited, "{qp_type:?}");
        }
        assert!(one(cq).ok().unwrap().solicited);
        // An error wakes too: the receive that is left is flushed.
        cq.arm(Arm::Solicited);
        pair.b.qp.fail().unwrap();
        assert!(cq.channel().next(SOON).unwrap().is_some());
        assert_eq!(one(cq).status, Status::Flushed);
    }
    appliance.stop();
}
