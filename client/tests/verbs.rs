//! What an application sees: queries, connecting, data, completions, lifetimes.
mod common;
mod mock;

use std::time::Duration;

use common::{Daemon, NOW, SOON, Side, connect, everything, pair, pair_with, pattern};
use rnic::{Arm, Completion, ConnectOptions, Context, Error, Mtu, Opcode, PortState, QpState, exchange};

#[test]
fn devices_ports_and_gids_can_be_queried() {
    let daemon = Daemon::start();
    let names: Vec<_> = rnic::devices(&daemon.socket)
        .unwrap()
        .into_iter()
        .map(|attr| attr.name)
        .collect();
    assert!(
        names.contains(&"rnic0".to_string()) && names.contains(&"rnic1".to_string()),
        "{names:?}"
    );
    let context = Context::open(&daemon.socket, "rnic1").unwrap();
    assert_eq!(context.attr().name, "rnic1");
    let port = context.query_port().unwrap();
    assert_eq!(port.state, PortState::Active);
    assert!(port.active_mtu >= Mtu::Mtu256 && port.active_mtu <= port.max_mtu);
    let gids = context.gids().unwrap();
    assert!(!gids.is_empty());
    assert_eq!(context.gid(gids[0].index).unwrap(), gids[0]);
}

#[test]
fn an_unknown_device_is_told_with_those_there_are() {
    let daemon = Daemon::start();
    let error = Context::open(&daemon.socket, "mlx5_0").unwrap_err().to_string();
    assert!(error.contains("mlx5_0") && error.contains("rnic0"), "{error}");
}

#[test]
fn no_daemon_is_told_with_the_path() {
    let error = Context::open("/nonexistent/rnicd.sock", "rnic0")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/nonexistent/rnicd.sock") && error.contains("running"),
        "{error}"
    );
}

#[test]
fn connecting_goes_through_the_states() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let attr = a.qp.query().unwrap();
    assert_eq!((attr.state, attr.dest_qpn), (QpState::Rts, b.qp.qpn()));
    assert_eq!(attr.cause, None);
    let lone = Side::open(&daemon, "rnic0", |config| config);
    assert_eq!(lone.qp.query().unwrap().state, QpState::Reset);
    let early = lone
        .qp
        .post(|batch| {
            batch.send(&lone.mr);
        })
        .unwrap_err()
        .to_string();
    assert!(early.contains("RESET") && early.contains("RTS"), "{early}");
    assert!(
        lone.qp
            .post_recv(|batch| {
                batch.recv(&lone.mr);
            })
            .is_err()
    );
}

#[test]
fn a_refusal_carries_errno_and_text() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    // From RTS there is no way back to RTR.
    let error = connect(&a.qp, &b.qp).unwrap_err();
    assert_eq!(error.errno(), Some(22), "{error}");
    assert!(error.to_string().contains("modify_qp"), "{error}");
}

#[test]
fn send_arrives_whole_with_its_immediate() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let bytes = pattern(5000, 1);
    a.mr.write_at(100, &bytes);
    b.qp.post_recv(|batch| {
        batch.recv(b.mr.slice(7..8000)).wr_id(70);
    })
    .unwrap();
    let posted = a.qp.post(|batch| {
        batch.send(a.mr.slice(100..5100)).imm(0xABCD).wr_id(7).signaled();
    });
    assert_eq!(posted.unwrap(), 1);
    let sent = a.completion();
    assert_eq!(
        (sent.wr_id, sent.opcode, sent.is_recv, sent.qpn),
        (7, Opcode::Send, false, a.qp.qpn())
    );
    let got = b.completion();
    assert_eq!(
        (got.wr_id, got.opcode, got.is_recv, got.byte_len),
        (70, Opcode::Recv, true, 5000)
    );
    assert_eq!((got.imm, got.invalidated_rkey), (Some(0xABCD), None));
    assert_eq!(b.mr.read_vec(7, 5000), bytes);
    assert_eq!(b.mr.read_vec(5007, 8), [0; 8]);
}

#[test]
fn write_and_read_reach_the_peers_memory() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let remote = b.mr.remote();
    let bytes = pattern(3001, 2);
    a.mr.write_at(0, &bytes);
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..3001), remote.at(13));
        batch
            .read(a.mr.slice(10_000..13_001), remote.at(13))
            .wr_id(1)
            .fence()
            .signaled();
    })
    .unwrap();
    let done = a.completion();
    assert_eq!((done.wr_id, done.opcode), (1, Opcode::Read));
    assert_eq!(b.mr.read_vec(13, 3001), bytes);
    assert_eq!(a.mr.read_vec(10_000, 3001), bytes);
}

#[test]
fn write_with_immediate_takes_a_receive_and_tells_the_length() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    b.qp.post_recv(|batch| {
        batch.recv([]).wr_id(5);
    })
    .unwrap();
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..640), b.mr.remote()).imm(9);
    })
    .unwrap();
    let got = b.completion();
    assert_eq!((got.wr_id, got.opcode), (5, Opcode::RecvWriteImm));
    assert_eq!((got.byte_len, got.imm), (640, Some(9)));
}

#[test]
fn gather_scatter_inline_and_empty_messages_of_every_length_of_wqe() {
    let daemon = Daemon::start();
    let (a, b) = pair_with(&daemon, |config| {
        config.max_sge(32).max_inline(928).max_send_wr(4).max_recv_wr(4)
    });
    let bytes = pattern(4096, 3);
    a.mr.write_at(0, &bytes);
    for pieces in [0, 1, 2, 3, 6, 7, 31, 32] {
        // Pieces of 100 bytes, in reverse order, put down in pieces of 110.
        let from: Vec<_> = (0..pieces)
            .rev()
            .map(|i| a.mr.slice(i * 100..(i + 1) * 100))
            .collect();
        let into: Vec<_> = (0..pieces).map(|i| b.mr.slice(i * 200..i * 200 + 110)).collect();
        b.qp.post_recv(|batch| {
            batch.recv(&into);
        })
        .unwrap();
        a.qp.post(|batch| {
            batch.send(&from).signaled();
        })
        .unwrap();
        a.completion();
        assert_eq!(b.completion().byte_len as usize, pieces * 100);
        let expected: Vec<u8> = from.iter().flat_map(|slice| slice.read_vec(0, 100)).collect();
        let got: Vec<u8> = into.iter().flat_map(|slice| slice.read_vec(0, 110)).collect();
        assert_eq!(got[..pieces * 100], expected);
    }
    for len in [0, 1, 31, 32, 33, 96, 97, 928] {
        b.qp.post_recv(|batch| {
            batch.recv(&b.mr);
        })
        .unwrap();
        a.qp.post(|batch| {
            batch.send_inline(&bytes[..len]).signaled();
        })
        .unwrap();
        a.completion();
        assert_eq!(b.completion().byte_len as usize, len);
        assert_eq!(b.mr.read_vec(0, len), bytes[..len]);
    }
}

#[test]
fn queues_wrap_around_and_numbers_may_repeat() {
    let daemon = Daemon::start();
    let (a, b) = pair_with(&daemon, |config| {
        config.max_send_wr(8).max_recv_wr(8).max_inline(40)
    });
    for round in 0..100u8 {
        let batch = 1 + usize::from(round % 7);
        b.qp.post_recv(|recvs| {
            (0..batch).for_each(|i| {
                recvs.recv(b.mr.slice(i * 64..(i + 1) * 64)).wr_id(3);
            })
        })
        .unwrap();
        a.qp.post(|sends| {
            for i in 0..batch {
                let send = sends.send_inline(&[round ^ i as u8; 40]).wr_id(3);
                // One completion a batch releases all of it.
                if i + 1 == batch {
                    send.signaled();
                }
            }
        })
        .unwrap();
        assert!(b.completions(batch).iter().all(|c| c.ok().unwrap().wr_id == 3));
        assert_eq!(a.completion().wr_id, 3);
        for i in 0..batch {
            assert_eq!(b.mr.read_vec(i * 64, 40), [round ^ i as u8; 40]);
        }
    }
}

#[test]
fn a_batch_is_posted_whole_or_not_at_all() {
    let daemon = Daemon::start();
    let (a, b) = pair_with(&daemon, |config| config.max_send_wr(4).sq_sig_all(true));
    let remote = b.mr.remote();
    let write = |count: usize| {
        a.qp.post(|batch| {
            (0..count).for_each(|i| {
                batch.write(a.mr.slice(..1), remote.at(i as u64)).wr_id(i as u64);
            })
        })
    };
    let depth = a.qp.depths().0 as usize;
    let full = write(depth + 1).unwrap_err();
    assert!(matches!(full, Error::QueueFull { queue: "send", .. }), "{full}");
    assert_eq!(write(depth).unwrap(), depth);
    // Room comes with the completions, not before they are polled.
    assert!(write(1).is_err());
    let numbers: Vec<_> = a
        .completions(depth)
        .iter()
        .map(|c| c.ok().unwrap().wr_id)
        .collect();
    assert_eq!(numbers, (0..depth as u64).collect::<Vec<_>>());
    assert_eq!(write(1).unwrap(), 1);
    a.completion();

    let other = b.pd.alloc_mr(16, everything()).unwrap();
    let foreign = a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), remote);
        batch.write(&other, remote);
        batch.write(a.mr.slice(..8), remote);
    });
    assert!(foreign.unwrap_err().to_string().contains("protection domain"));
    let sges = a.qp.post(|batch| {
        batch.send([a.mr.slice(..1), a.mr.slice(..1)]);
    });
    assert!(sges.unwrap_err().to_string().contains("scatter/gather"));
    assert!(
        a.qp.post(|batch| {
            batch.send_inline(&[1]);
        })
        .unwrap_err()
        .to_string()
        .contains("inline")
    );
    assert_eq!(a.cq.poll(&mut [Completion::default()]), 0);
    drop(a.qp.batch());
    write(1).unwrap();
    assert_eq!(a.completion().wr_id, 0);
}

#[test]
fn memory_in_flight_cannot_be_deregistered() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let buffer = b.pd.alloc_mr(4096, everything()).unwrap();
    let seen = buffer.slice(..);
    b.qp.post_recv(|batch| {
        batch.recv(&buffer);
    })
    .unwrap();
    drop(seen);
    let busy = buffer.deregister().unwrap_err();
    assert!(matches!(busy, Error::Busy(_)), "{busy}");
    // Still registered: the message is put there.
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..16)).signaled();
    })
    .unwrap();
    a.completion();
    assert_eq!(b.completion().byte_len, 16);

    let buffer = b.pd.alloc_mr(4096, everything()).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&buffer);
    })
    .unwrap();
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..16)).signaled();
    })
    .unwrap();
    b.completion();
    buffer.deregister().unwrap();
}

#[test]
fn polling_while_a_batch_is_built_does_not_block() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let buffer = a.pd.alloc_mr(64, everything()).unwrap();
    a.qp.post(|batch| {
        batch.write(&buffer, b.mr.remote()).signaled();
    })
    .unwrap();
    let mut batch = a.qp.batch();
    batch.write(a.mr.slice(..1), b.mr.remote()).wr_id(1).signaled();
    assert_eq!(a.completion().wr_id, 0);
    assert_eq!(batch.post().unwrap(), 1);
    assert_eq!(a.completion().wr_id, 1);
    // What the poll could not release while the batch held the queue, the batch did.
    buffer.deregister().unwrap();
}

#[test]
fn a_waiter_sleeps_until_its_completion_comes() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    assert_eq!(b.cq.wait_vec(4, NOW).unwrap(), []);
    assert_eq!(b.cq.wait_vec(4, Some(Duration::from_millis(1))).unwrap(), []);
    for round in 0..200 {
        b.qp.post_recv(|batch| {
            batch.recv(&b.mr).wr_id(round);
        })
        .unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| b.completion().wr_id);
            a.qp.post(|batch| {
                batch.send_inline(&[]).signaled();
            })
            .unwrap();
            a.completion();
            assert_eq!(waiter.join().unwrap(), round);
        });
    }
}

#[test]
fn one_channel_serves_several_queues_and_waiters() {
    let daemon = Daemon::start();
    let (a, b) = (
        Side::open(&daemon, "rnic0", |c| c),
        Side::open(&daemon, "rnic1", |c| c),
    );
    let channel = b.context.create_comp_channel().unwrap();
    let ends: Vec<_> = (0..2)
        .map(|_| {
            let cq = b.context.create_cq_on(&channel, 16).unwrap();
            let near =
                a.pd.create_qp(rnic::QpConfig::new(&a.cq, &a.cq).sq_sig_all(true))
                    .unwrap();
            let far = b.pd.create_qp(rnic::QpConfig::new(&b.cq, &cq)).unwrap();
            connect(&near, &far).unwrap();
            (near, far, cq)
        })
        .collect();
    let post = |i: usize| {
        ends[i]
            .1
            .post_recv(|batch| {
                batch.recv(&b.mr).wr_id(i as u64);
            })
            .unwrap();
        ends[i]
            .0
            .post(|batch| {
                batch.send(a.mr.slice(..4));
            })
            .unwrap();
    };
    // An event loop: armed, then told which queues fired.
    ends.iter().for_each(|(_, _, cq)| cq.arm(Arm::Any));
    (0..2).for_each(post);
    let mut fired: Vec<_> = (0..2)
        .map(|_| channel.next(SOON).unwrap().unwrap().number())
        .collect();
    fired.sort();
    assert_eq!(fired, [ends[0].2.number(), ends[1].2.number()]);
    assert!(channel.next(NOW).unwrap().is_none());
    for (_, _, cq) in &ends {
        assert_eq!(cq.wait_vec(4, NOW).unwrap().len(), 1);
    }
    a.completions(2);
    // Two sleepers on the one descriptor.
    for _ in 0..50 {
        std::thread::scope(|scope| {
            let waiters: Vec<_> = ends
                .iter()
                .map(|(_, _, cq)| scope.spawn(|| cq.wait_vec(1, SOON).unwrap()[0].wr_id))
                .collect();
            (0..2).rev().for_each(post);
            let got: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
            assert_eq!(got, [0, 1]);
        });
        a.completions(2);
    }
}

#[test]
fn only_solicited_completions_fire_a_queue_armed_for_them() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    b.qp.post_recv(|batch| {
        (0..2).for_each(|_| {
            batch.recv(&b.mr);
        })
    })
    .unwrap();
    b.cq.arm(Arm::Solicited);
    a.qp.post(|batch| {
        batch.send_inline(&[]).signaled();
    })
    .unwrap();
    a.completion();
    let mut out = [Completion::default(); 4];
    assert_eq!(b.cq.spin(&mut out, SOON).unwrap(), 1);
    assert!(b.cq.channel().next(NOW).unwrap().is_none());
    a.qp.post(|batch| {
        batch.send_inline(&[]).solicited();
    })
    .unwrap();
    assert_eq!(
        b.cq.channel().next(SOON).unwrap().unwrap().number(),
        b.cq.number()
    );
    assert!(b.completion().solicited);
}

#[test]
fn threads_share_a_queue_pair() {
    const EACH: u64 = 300;
    let daemon = Daemon::start();
    let (a, b) = pair_with(&daemon, |config| config.max_send_wr(16).sq_sig_all(true));
    let remote = b.mr.remote();
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (a, b) = (&a, &b);
            scope.spawn(move || {
                let mut next = 0;
                while next < EACH {
                    let number = thread * EACH + next;
                    match a.qp.post(|batch| {
                        batch.write_inline(&[], remote).wr_id(number);
                    }) {
                        Ok(_) => next += 1,
                        Err(Error::QueueFull { .. }) => std::thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                let _ = b;
            });
        }
        let mut numbers: Vec<_> = a
            .completions(2 * EACH as usize)
            .iter()
            .map(|c| c.ok().unwrap().wr_id)
            .collect();
        for thread in 0..2 {
            let own: Vec<_> = numbers
                .iter()
                .filter(|number| **number / EACH == thread)
                .collect();
            assert!(own.is_sorted(), "completions of one thread's posts are in order");
        }
        numbers.sort();
        assert_eq!(numbers, (0..2 * EACH).collect::<Vec<_>>());
    });
}

#[test]
fn a_reset_queue_pair_starts_anew() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let buffer = b.pd.alloc_mr(64, everything()).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&buffer).wr_id(1);
    })
    .unwrap();
    a.qp.reset().unwrap();
    b.qp.reset().unwrap();
    buffer.deregister().unwrap();
    connect(&a.qp, &b.qp).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&b.mr).wr_id(2);
    })
    .unwrap();
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..1)).signaled();
    })
    .unwrap();
    a.completion();
    assert_eq!(b.completion().wr_id, 2);
}

#[test]
fn processes_find_each_other_over_tcp() {
    let daemon = Daemon::start();
    let listener = exchange::listen("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let options = ConnectOptions {
        mtu: Some(Mtu::Mtu512),
        ..ConnectOptions::default()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let side = Side::open(&daemon, "rnic0", |config| config);
            let mut peer = listener.accept().unwrap();
            let (endpoint, _) = peer
                .swap(&(side.qp.endpoint(&options).unwrap(), side.mr.remote()))
                .unwrap();
            side.qp.connect(&endpoint, &options).unwrap();
            side.mr.write_at(0, b"published");
            peer.barrier().unwrap();
            peer.barrier().unwrap();
        });
        let side = Side::open(&daemon, "rnic1", |config| config);
        let mut peer = exchange::connect(address, SOON).unwrap();
        let (endpoint, remote) = peer
            .swap(&(side.qp.endpoint(&options).unwrap(), side.mr.remote()))
            .unwrap();
        assert_eq!(endpoint.mtu, Mtu::Mtu512);
        side.qp.connect(&endpoint, &options).unwrap();
        peer.barrier().unwrap();
        side.qp
            .post(|batch| {
                batch.read(side.mr.slice(..9), remote).signaled();
            })
            .unwrap();
        side.completion();
        assert_eq!(side.mr.read_vec(0, 9), b"published");
        peer.barrier().unwrap();
    });
}
