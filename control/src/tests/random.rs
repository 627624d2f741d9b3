//! Random requests by several clients at once: the daemon counts what was really made, and nothing is left.
use proptest::{prelude::*, test_runner::TestRunner};
use rnic_abi::*;

use crate::testing::*;

#[derive(Clone, Debug)]
enum Action {
    Pd,
    Channel,
    Cq {
        depth: u32,
        channel: usize,
    },
    Qp {
        pd: usize,
        cq: usize,
        units: u32,
    },
    Mr {
        pd: usize,
        length: u64,
        access: u32,
    },
    Modify {
        qp: usize,
        mask: u32,
        state: u8,
        byte: u8,
    },
    Destroy {
        kind: usize,
        handle: usize,
    },
    Stray {
        op: u16,
        body: Vec<u8>,
    },
    Die,
}

fn action() -> impl Strategy<Value = Action> {
    let some = 0usize..50;
    prop_oneof![
        2 => Just(Action::Pd),
        1 => Just(Action::Channel),
        3 => (0u32..300, some.clone()).prop_map(|(depth, channel)| Action::Cq { depth, channel }),
        6 => (some.clone(), some.clone(), 0u32..70).prop_map(|(pd, cq, units)| Action::Qp { pd, cq, units }),
        3 => (some.clone(), 0u64..3 << 20, 0u32..32).prop_map(|(pd, length, access)| Action::Mr { pd, length, access }),
        6 => (some.clone(), any::<u32>(), 0u8..8, any::<u8>())
            .prop_map(|(qp, mask, state, byte)| Action::Modify { qp, mask: mask & 0x3F_FFFF, state, byte }),
        6 => (0usize..5, some).prop_map(|(kind, handle)| Action::Destroy { kind, handle }),
        2 => (0u16..40, prop::collection::vec(any::<u8>(), 0..120)).prop_map(|(op, body)| Action::Stray { op, body }),
        1 => Just(Action::Die),
    ]
}

const DESTROYS: [Op; 5] = [
    Op::DeallocPd,
    Op::DestroyCompChannel,
    Op::DestroyCq,
    Op::DestroyQp,
    Op::DeregMr,
];

/// A client with the handles it was given: PDs, channels, CQs, QPs, MRs.
struct Model {
    client: Client,
    handles: [Vec<u32>; 5],
}

impl Model {
    fn new(daemon: &TestDaemon) -> Self {
        Model {
            client: daemon.client(),
            handles: Default::default(),
        }
    }

    /// A handle of one kind, or one that is not.
    fn pick(&self, kind: usize, index: usize) -> u32 {
        self.handles[kind]
            .get(index % (self.handles[kind].len() + 1))
            .copied()
            .unwrap_or(index as u32)
    }

    /// Whether the client lives on.
    fn act(&mut self, action: Action, memory: &std::os::fd::OwnedFd) -> bool {
        let made = match action {
            Action::Pd => Some((0, Ok(self.client.pd()))),
            Action::Channel => Some((1, Ok(self.client.channel().0))),
            Action::Cq { depth, channel } => {
                let channel = if channel % 2 == 0 {
                    0
                } else {
                    self.pick(1, channel)
                };
                Some((2, self.client.try_cq(depth, channel).map(|cq| cq.handle)))
            }
            Action::Qp { pd, cq, units } => {
                let (pd, cq) = (self.pick(0, pd), self.pick(2, cq));
                let arg = CreateQp {
                    pd,
                    send_cq: cq,
                    recv_cq: cq,
                    qp_type: 2,
                    sq_units: units,
                    ..Default::default()
                };
                Some((
                    3,
                    self.client
                        .call::<CreateQpReply>(Op::CreateQp, &arg)
                        .map(|qp| qp.handle),
                ))
            }
            Action::Mr { pd, length, access } => {
                let pd = self.pick(0, pd);
                Some((
                    4,
                    self.client.try_mr(pd, memory, length, access).map(|mr| mr.handle),
                ))
            }
            Action::Modify {
                qp,
                mask,
                state,
                byte,
            } => {
                let handle = self.pick(3, qp);
                let attrs = QpAttrs {
                    qp_state: state,
                    path_mtu: byte % 7,
                    port_num: 1,
                    timeout: byte,
                    ..rtr("10.0.0.2", u32::from(byte))
                };
                let _ = self.client.modify(handle, mask, attrs);
                None
            }
            Action::Destroy { kind, handle } => {
                let handle = self.pick(kind, handle);
                let arg = HandleArg { handle, reserved: 0 };
                self.client.send(DESTROYS[kind], &arg, &[]);
                let (header, ..) = self.client.receive().unwrap();
                if header.status == 0 {
                    self.handles[kind].retain(|h| *h != handle);
                }
                None
            }
            Action::Stray { op, body } => {
                let mut header = self.client.header(Op::Hello, body.len());
                header.op = op;
                // Creations would succeed with the right body, unseen by this model.
                header.version = 9;
                self.client
                    .send_raw(&[zerocopy::IntoBytes::as_bytes(&header), &body].concat(), &[]);
                assert_ne!(self.client.receive().unwrap().0.status, 0);
                self.client.sequence -= 1;
                None
            }
            Action::Die => return false,
        };
        if let Some((kind, Ok(handle))) = made {
            self.handles[kind].push(handle);
        }
        true
    }
}

#[test]
fn random_requests_leave_exactly_what_they_made_and_nothing_after_death() {
    let daemon = TestDaemon::start(2);
    let memory = sealed_memfd(2 << 20);
    let script = prop::collection::vec((0usize..3, action()), 1..120);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 24,
        ..ProptestConfig::default()
    });
    runner
        .run(&script, |script| {
            let mut models: Vec<Model> = (0..3).map(|_| Model::new(&daemon)).collect();
            for (who, action) in script {
                if !models[who].act(action, &memory) {
                    models[who] = Model::new(&daemon);
                }
            }
            wait_for(|| daemon.status().clients == 3);
            let status = daemon.status();
            let count = |kind: usize| models.iter().map(|m| m.handles[kind].len()).sum::<usize>();
            prop_assert_eq!(
                (status.pds, status.cqs, status.qps, status.mrs),
                (count(0), count(2), count(3), count(4))
            );
            drop(models);
            daemon.wait_for_baseline();
            Ok(())
        })
        .unwrap();
}
