//! Requests that are right in form and ask for what cannot be: each is refused by the name of the argument.
use rnic_abi::{
    CreateCq, CreateQp, DeviceArg, Empty, GidArg, HandleArg, Hello, ModifyQp, Op, QpAttrs, qp_mask,
};
use rnic_tests::raw::{Line, Verbs, ipv4_gid, memfd, rts};
use rnic_tests::{Appliance, Scene, Setup, Turn};
use rustix::fs::SealFlags;
use zerocopy::IntoBytes;

#[test]
fn arguments_out_of_range_are_refused_by_name() {
    let _turn = Turn::take();
    let scene = Scene::new();
    let mut verbs = Verbs::open(&scene.socket, 0, 64);
    let qp = verbs.qp(16);
    let pd = verbs.pd();
    let mut refuse = |op: Op, body: &[u8], text: &str| {
        let reply = verbs.line.request(op, body, &[]);
        assert_ne!(
            reply.errno(),
            0,
            "{} with {text} out of range was accepted",
            op.name()
        );
        let says = reply.text().to_lowercase();
        assert!(says.contains(text), "{}: {says:?} lacks {text:?}", op.name());
    };
    for device in [2, 7, u32::MAX] {
        let arg = DeviceArg { device, reserved: 0 };
        for op in [Op::QueryDevice, Op::QueryPort, Op::AllocPd] {
            refuse(op, arg.as_bytes(), "device");
        }
        refuse(
            Op::CreateCq,
            CreateCq {
                device,
                depth: 8,
                ..CreateCq::default()
            }
            .as_bytes(),
            "device",
        );
    }
    for index in [2, u32::MAX] {
        refuse(Op::QueryGid, GidArg { device: 0, index }.as_bytes(), "index");
    }
    refuse(
        Op::AllocPd,
        DeviceArg {
            device: 0,
            reserved: 1,
        }
        .as_bytes(),
        "reserved",
    );
    for depth in [0, (1 << 30) + 1, u32::MAX] {
        refuse(
            Op::CreateCq,
            CreateCq {
                depth,
                ..CreateCq::default()
            }
            .as_bytes(),
            "depth",
        );
    }
    refuse(
        Op::CreateCq,
        CreateCq {
            depth: 8,
            channel: 99,
            ..CreateCq::default()
        }
        .as_bytes(),
        "channel",
    );
    let good = CreateQp {
        pd,
        send_cq: 0,
        recv_cq: 0,
        qp_type: 2,
        sq_units: 4,
        rq_units: 4,
        ..CreateQp::default()
    };
    refuse(Op::CreateQp, good.as_bytes(), "send_cq");
    for handle in [0, pd ^ 1 << 20, qp.made.handle ^ 1 << 20, 0x0F_FFF0, u32::MAX] {
        let arg = HandleArg { handle, reserved: 0 };
        for op in [
            Op::DeallocPd,
            Op::DeregMr,
            Op::DestroyCq,
            Op::DestroyQp,
            Op::QueryQp,
            Op::DestroyCompChannel,
        ] {
            refuse(op, arg.as_bytes(), "handle");
        }
    }
    // A live handle of another kind, and one that others depend on.
    refuse(
        Op::DestroyQp,
        HandleArg {
            handle: pd,
            reserved: 0,
        }
        .as_bytes(),
        "must be a",
    );
    refuse(
        Op::DeallocPd,
        HandleArg {
            handle: pd,
            reserved: 0,
        }
        .as_bytes(),
        "in use",
    );

    let handle = qp.made.handle;
    let modify = |mask, attrs| ModifyQp { handle, mask, attrs };
    let [init, rtr, _] = rts(handle, 5, ipv4_gid("10.0.0.2"));
    refuse(Op::ModifyQp, modify(u32::MAX, init.attrs).as_bytes(), "");
    refuse(Op::ModifyQp, rtr.as_bytes(), "");
    for state in [7, 255] {
        let attrs = QpAttrs {
            qp_state: state,
            ..init.attrs
        };
        refuse(Op::ModifyQp, modify(qp_mask::STATE, attrs).as_bytes(), "state");
    }
    refuse(
        Op::ModifyQp,
        modify(init.mask & !qp_mask::PORT, init.attrs).as_bytes(),
        "port",
    );
    let attrs = QpAttrs {
        qp_access_flags: u32::MAX,
        ..init.attrs
    };
    refuse(Op::ModifyQp, modify(init.mask, attrs).as_bytes(), "access");

    let _: Empty = verbs.line.request(Op::ModifyQp, &init, &[]).body();
    for (mutated, text) in [
        (
            QpAttrs {
                path_mtu: 0,
                ..rtr.attrs
            },
            "mtu",
        ),
        (
            QpAttrs {
                path_mtu: 6,
                ..rtr.attrs
            },
            "mtu",
        ),
        (
            QpAttrs {
                dest_qp_num: 1 << 24,
                ..rtr.attrs
            },
            "dest_qpn",
        ),
        (
            QpAttrs {
                rq_psn: 1 << 24,
                ..rtr.attrs
            },
            "psn",
        ),
        (
            QpAttrs {
                min_rnr_timer: 32,
                ..rtr.attrs
            },
            "rnr",
        ),
        (
            QpAttrs {
                max_dest_rd_atomic: 255,
                ..rtr.attrs
            },
            "rd_atomic",
        ),
    ] {
        let reply = verbs.line.request(
            Op::ModifyQp,
            &ModifyQp {
                handle,
                mask: rtr.mask,
                attrs: mutated,
            },
            &[],
        );
        assert_ne!(reply.errno(), 0, "{text} out of range was accepted");
        assert!(
            reply.text().to_lowercase().contains(text),
            "{:?} lacks {text:?}",
            reply.text()
        );
    }
    drop(verbs);
    scene.end();
}

#[test]
fn quotas_hold_and_what_is_refused_is_not_half_made() {
    let _turn = Turn::take();
    let limits = "limits: { clients: 3, per_client: { qps: 3, cqs: 2, mrs: 2, pds: 2, queue_memory: 64KiB, \
                  wr_depth: 64, cq_depth: 64, registered_memory: 1MiB } }";
    let appliance = Appliance::start(&Setup::back_to_back().with(limits));
    let socket = appliance.socket();
    let mut verbs = Verbs::open(&socket, 0, 16);
    let refuse = |reply: rnic_tests::raw::Reply| {
        assert_ne!(reply.errno(), 0);
        assert!(reply.text().contains("limits."), "{}", reply.text());
    };
    let arg = DeviceArg::default();
    assert_eq!(verbs.line.request(Op::AllocPd, &arg, &[]).errno(), 0);
    refuse(verbs.line.request(Op::AllocPd, &arg, &[]));
    for _ in 0..3 {
        verbs.qp(4);
    }
    let counts = appliance.counts();
    assert_eq!((counts.pds, counts.qps, counts.cqs), (2, 3, 1));
    let cq = CreateCq {
        depth: 64,
        ..CreateCq::default()
    };
    assert_eq!(verbs.line.request(Op::CreateCq, &cq, &[]).errno(), 0);
    refuse(verbs.line.request(Op::CreateCq, &cq, &[]));
    refuse(
        verbs
            .line
            .request(Op::CreateCq, &CreateCq { depth: 65, ..cq }, &[]),
    );
    let file = memfd(4 << 20, SealFlags::SHRINK, false).unwrap();
    refuse(verbs.reg_mr(&file, 0, 2 << 20, 0));
    verbs.mr(&file, 1 << 19, 0);
    verbs.mr(&file, 1 << 19, 0);
    refuse(verbs.reg_mr(&file, 0, 4096, 0));
    let _others = [Line::greet(&socket), Line::greet(&socket)];
    let mut fourth = Line::connect(&socket);
    refuse(fourth.request(Op::Hello, &Hello::default(), &[]));
    assert_eq!(appliance.counts().clients, 3);
    appliance.stop();
}
