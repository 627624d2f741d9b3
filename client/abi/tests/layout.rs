//! The numbers of the ABI. Where one of these has to change, `ABI_VERSION` does too.
use std::mem::{align_of, offset_of, size_of};

use rnic_abi::*;

macro_rules! layout {
    ($($name:ident { $($field:ident @ $offset:literal),* $(,)? } size $size:literal align $align:literal)*) => {$(
        assert_eq!(size_of::<$name>(), $size, concat!("size of ", stringify!($name)));
        assert_eq!(align_of::<$name>(), $align, concat!("alignment of ", stringify!($name)));
        $(assert_eq!(
            offset_of!($name, $field),
            $offset,
            concat!("offset of ", stringify!($name), "::", stringify!($field))
        );)*
    )*};
}

#[test]
fn shared_memory_structures_are_where_they_were() {
    layout! {
        RegionHeader {
            magic @ 0, abi_version @ 8, header_size @ 12, features @ 16, boot_epoch @ 24, region_size @ 32,
            events_offset @ 40, slots_offset @ 48, doorbells_offset @ 56, queues_offset @ 64,
            event_ring_len @ 72, slots @ 76, cores @ 80, wqe_size @ 84, cqe_size @ 88, event_slot_size @ 92,
            ring_indices_size @ 96, doorbell_block_size @ 100, reserved @ 104,
        } size 232 align 8
        RingIndices { tail @ 0, head @ 128, need_kick @ 256 } size 384 align 4
        Sge { addr @ 0, length @ 8, lkey @ 12 } size 16 align 8
        Wqe {
            wr_id @ 0, opcode @ 8, flags @ 9, num_sge @ 10, units @ 11, imm_or_rkey @ 12, remote_addr @ 16,
            rkey @ 24, inline_len @ 28, sges @ 32,
        } size 64 align 8
        AtomicOperands { compare_add @ 0, swap @ 8 } size 16 align 8
        BindOperands { length @ 0, access @ 8, reserved @ 12 } size 16 align 8
        FlushOperands { length @ 0, placement @ 4, selectivity @ 5, reserved @ 6 } size 16 align 4
        Cqe {
            wr_id @ 0, handle @ 8, qpn @ 12, byte_len @ 16, imm_or_rkey @ 20, src_qpn @ 24, status @ 28,
            opcode @ 29, flags @ 30, cause @ 32, timestamp @ 40, reserved @ 48,
        } size 64 align 8
        Cause { check @ 0, opcode @ 1, syndrome @ 2, reserved @ 3, psn @ 4 } size 8 align 4
        EventSlot {
            pending @ 0, handle @ 4, number @ 8, sequence @ 12, cause @ 16, reserved @ 24,
        } size 64 align 4
    }
    assert_eq!(
        (RingIndices::TAIL, RingIndices::HEAD, RingIndices::NEED_KICK),
        (0, 128, 256)
    );
    // The operands of an atomic stand where its second entry would.
    let wqe = Wqe {
        sges: [
            Sge::default(),
            Sge {
                addr: 1,
                length: 2,
                lkey: 3,
            },
        ],
        ..Wqe::default()
    };
    let (compare_add, swap) = (1, 3 << 32 | 2);
    let operands = AtomicOperands { compare_add, swap };
    assert_eq!(
        (wqe.atomic_operands(), Sge::from(operands)),
        (operands, wqe.sges[1])
    );
    assert_eq!(
        (EventSlot::PENDING, EventSlot::HANDLE, EventSlot::NUMBER),
        (0, 4, 8)
    );
    assert_eq!((EventSlot::SEQUENCE, EventSlot::CAUSE), (12, 16));
}

#[test]
fn control_packets_are_what_they_were() {
    layout! {
        RequestHeader {
            magic @ 0, version @ 4, op @ 6, session @ 8, sequence @ 16, body_len @ 24, reserved @ 28,
        } size 32 align 8
        ReplyHeader {
            magic @ 0, status @ 4, session @ 8, sequence @ 16, body_len @ 24, op @ 28,
        } size 32 align 8
        Empty {} size 0 align 1
        Hello { features @ 0, reserved @ 8 } size 32 align 8
        HelloReply {
            session @ 0, boot_epoch @ 8, region_size @ 16, devices @ 24, cores @ 28, max_objects @ 32, reserved @ 36,
        } size 40 align 8
        DeviceArg { device @ 0, reserved @ 4 } size 8 align 4
        HandleArg { handle @ 0, reserved @ 4 } size 8 align 4
        HandleReply { handle @ 0, reserved @ 4 } size 8 align 4
        DeviceReply {
            name @ 0, fw_ver @ 32, node_guid @ 64, max_mr_size @ 72, max_qp @ 80, max_qp_wr @ 84, max_sge @ 88,
            max_inline @ 92, max_cq @ 96, max_cqe @ 100, max_mr @ 104, max_pd @ 108, max_qp_rd_atom @ 112,
            max_qp_init_rd_atom @ 116, gids @ 120, ports @ 124, cap_flags @ 128, page_size_cap @ 136,
            timestamp_mask @ 144, core_clock_khz @ 152, atomic_cap @ 160, max_res_rd_atom @ 164, max_srq @ 168,
            max_srq_wr @ 172, max_srq_sge @ 176, max_ah @ 180, max_mcast_grp @ 184, max_mcast_qp_attach @ 188,
            max_pkeys @ 192, local_ca_ack_delay @ 196, max_cq_count @ 200, max_cq_period @ 204,
        } size 208 align 8
        PortReply {
            state @ 0, max_mtu @ 4, active_mtu @ 8, link_mtu @ 12, gids @ 16, speed_mbps @ 20, mac @ 24, pkeys @ 30,
            max_msg_sz @ 32, phys_state @ 36,
        } size 40 align 4
        GidArg { device @ 0, index @ 4 } size 8 align 4
        GidReply { gid @ 0, kind @ 16, vlan @ 20 } size 24 align 4
        RegMr { pd @ 0, access @ 4, fd_offset @ 8, length @ 16, iova @ 24 } size 32 align 8
        RegMrReply { handle @ 0, lkey @ 4, rkey @ 8, reserved @ 12 } size 16 align 4
        DeregMr { handle @ 0, flags @ 4 } size 8 align 4
        AllocMw { pd @ 0, mw_type @ 4 } size 8 align 4
        AllocMwReply { handle @ 0, rkey @ 4 } size 8 align 4
        CreateCq { device @ 0, depth @ 4, channel @ 8, reserved @ 12 } size 16 align 4
        CreateCqReply { handle @ 0, depth @ 4, subrings @ 8, reserved @ 12, offset @ 16 } size 24 align 8
        ResizeCq { handle @ 0, depth @ 4 } size 8 align 4
        ResizeCqReply { offset @ 0, depth @ 8, subrings @ 12 } size 16 align 8
        ResizeCqDone { handle @ 0, wake @ 4 } size 8 align 4
        ModifyCq { handle @ 0, count @ 4, period @ 6 } size 8 align 4
        QueryCqReply {
            depth @ 0, subrings @ 4, waiting @ 8, count @ 12, period @ 14, failed @ 16, reserved @ 20,
        } size 24 align 4
        RtValuesReply { raw_clock @ 0 } size 8 align 8
        PkeyArg { device @ 0, index @ 4 } size 8 align 4
        PkeyReply { pkey @ 0, reserved @ 4 } size 8 align 4
        CreateQp {
            pd @ 0, send_cq @ 4, recv_cq @ 8, qp_type @ 12, sq_units @ 16, rq_units @ 20, sq_sig_all @ 24, srq @ 28,
        } size 32 align 4
        CreateQpReply {
            handle @ 0, qpn @ 4, sq_offset @ 8, rq_offset @ 16, sq_depth @ 24, rq_depth @ 28, doorbell_block @ 32,
            reserved @ 36,
        } size 40 align 8
        CreateSrq { pd @ 0, max_wr @ 4, max_sge @ 8, reserved @ 12 } size 16 align 4
        CreateSrqReply {
            handle @ 0, srqn @ 4, offset @ 8, depth @ 16, stride @ 20, max_wr @ 24, max_sge @ 28,
        } size 32 align 8
        ModifySrq { handle @ 0, mask @ 4, max_wr @ 8, srq_limit @ 12 } size 16 align 4
        QuerySrqReply { max_wr @ 0, max_sge @ 4, srq_limit @ 8, reserved @ 12 } size 16 align 4
        Av {
            dgid @ 0, flow_label @ 16, sgid_index @ 20, hop_limit @ 21, traffic_class @ 22, sl @ 23,
        } size 24 align 4
        QpAttrs {
            qp_state @ 0, cur_qp_state @ 1, path_mtu @ 2, en_sqd_async_notify @ 3, port_num @ 4, timeout @ 5,
            retry_cnt @ 6, rnr_retry @ 7, min_rnr_timer @ 8, max_rd_atomic @ 9, max_dest_rd_atomic @ 10,
            path_mig_state @ 11, pkey_index @ 12, sq_draining @ 14, features @ 15, qp_access_flags @ 16, qkey @ 20, rq_psn @ 24,
            sq_psn @ 28, dest_qp_num @ 32, ah_attr @ 36,
        } size 60 align 4
        ModifyQp { handle @ 0, mask @ 4, attrs @ 8 } size 68 align 4
        QueryQpReply { attrs @ 0, cause @ 60, init @ 68 } size 100 align 4
        QpInitAttrs {
            qp_type @ 0, sq_units @ 4, rq_units @ 8, sq_sig_all @ 12, pd @ 16, send_cq @ 20, recv_cq @ 24, srq @ 28,
        } size 32 align 4
        CreateAh { pd @ 0, flags @ 4, ah_attr @ 8 } size 32 align 4
        CreateAhReply { handle @ 0, ah @ 4 } size 8 align 4
        McastArg { handle @ 0, reserved @ 4, mgid @ 8 } size 24 align 4
        OpenXrcd { device @ 0, flags @ 4 } size 8 align 4
        OpenXrcdReply { handle @ 0, xrcdn @ 4 } size 8 align 4
        CreateXrcSrq { xrcd @ 0, pd @ 4, cq @ 8, max_wr @ 12, max_sge @ 16, reserved @ 20 } size 24 align 4
        OpenQp { xrcd @ 0, qpn @ 4 } size 8 align 4
        OpenQpReply { handle @ 0, qpn @ 4 } size 8 align 4
        QueryAhReply { ah_attr @ 0, ah @ 24, next_hop @ 28, reserved @ 34 } size 36 align 4
        DestroyReply { events_reported @ 0, reserved @ 4 } size 8 align 4
    }
    assert_eq!(CONTROL_MAGIC.to_le_bytes(), *b"rnic");
    assert_eq!(REGION_MAGIC.to_le_bytes(), *b"rnicctx1");
    assert_eq!((ABI_VERSION, MAX_PACKET, MAX_ERROR_TEXT), (1, 4096, 512));
}

#[test]
fn operations_keep_their_numbers() {
    let all: Vec<_> = (0..128)
        .filter_map(|n| Op::from_u16(n).map(|op| (n, op.name())))
        .collect();
    let expected = [
        (1, "hello"),
        (2, "query_device"),
        (3, "query_port"),
        (4, "query_gid"),
        (10, "alloc_pd"),
        (11, "dealloc_pd"),
        (12, "reg_mr"),
        (13, "dereg_mr"),
        (14, "create_comp_channel"),
        (15, "destroy_comp_channel"),
        (16, "create_cq"),
        (17, "destroy_cq"),
        (18, "create_qp"),
        (19, "modify_qp"),
        (20, "query_qp"),
        (21, "destroy_qp"),
        (22, "create_ah"),
        (23, "query_ah"),
        (24, "destroy_ah"),
        (30, "create_srq"),
        (31, "modify_srq"),
        (32, "query_srq"),
        (33, "destroy_srq"),
        (40, "attach_mcast"),
        (41, "detach_mcast"),
        (50, "alloc_mw"),
        (51, "dealloc_mw"),
        (60, "open_xrcd"),
        (61, "alloc_xrcd"),
        (62, "close_xrcd"),
        (63, "create_xrc_srq"),
        (64, "create_xrc_tgt"),
        (65, "open_qp"),
        (70, "resize_cq"),
        (71, "resize_cq_done"),
        (72, "modify_cq"),
        (73, "query_cq"),
        (74, "query_rt_values"),
        (75, "query_pkey"),
    ];
    assert_eq!(all, expected);
    for (number, _) in all {
        assert_eq!(Op::from_u16(number).map(|op| op as u16), Some(number));
    }
}

#[test]
fn flags_keep_their_bits() {
    use wqe_flags::{FENCE, INLINE, SIGNALED, SOLICITED};
    // Those of enum ibv_send_flags.
    assert_eq!([FENCE, SIGNALED, SOLICITED, INLINE], [1, 2, 4, 8]);
    assert_eq!(wqe_flags::ALL, FENCE | SIGNALED | SOLICITED | INLINE);
    assert_eq!(wqe_flags::XRC, 128);
    use cqe_flags::{RECV, WITH_IMM, WITH_INV};
    assert_eq!([WITH_IMM, WITH_INV, cqe_flags::SOLICITED, RECV], [1, 2, 4, 8]);
    assert_eq!([arm::NONE, arm::SOLICITED, arm::ANY], [0, 1, 2]);
    assert_eq!((cqe_flags::GRH, cqe_flags::XRC), (16, 32));
    assert_eq!((xrcd_flags::CREATE, xrcd_flags::EXCLUSIVE), (1, 2));
    assert_eq!(ah_flags::NON_BLOCKING, 1);
    assert_eq!(IN_RING, 1 << 31);
    assert_eq!(event_kind::QP_FATAL, 1);
    assert_eq!(event_kind::DEVICE_FATAL, 1 << (event_kind::NAMES.len() - 1));
}

#[test]
fn a_work_request_takes_as_many_units_as_it_needs() {
    let by_sges = [(0, 1), (1, 1), (2, 1), (3, 2), (6, 2), (7, 3), (32, 9)];
    for (sges, units) in by_sges {
        assert_eq!(Wqe::units_for_sges(sges), units, "{sges} entries");
    }
    for (bytes, units) in [(0, 1), (32, 1), (33, 2), (96, 2), (97, 3), (MAX_INLINE, 15)] {
        assert_eq!(Wqe::units_for_inline(bytes), units, "{bytes} bytes");
    }
    assert_eq!(
        Wqe::MAX_UNITS,
        Wqe::units_for_inline(MAX_INLINE).max(Wqe::units_for_sges(MAX_SGE)) + 1,
        "and one over XRC"
    );
    assert_eq!(MAX_INLINE, 928);
}

#[test]
fn queues_are_as_large_as_they_were() {
    assert_eq!(work_queue_size(1), 384 + 64);
    assert_eq!(work_queue_size(256), 384 + 256 * 64);
    assert_eq!(cq_subring_size(64), 384 + 64 * 64);
    assert_eq!(completion_queue_size(64, 3), 128 + 3 * (384 + 64 * 64));
    assert_eq!(cq_subring_offset(64, 0), 128);
    assert_eq!(cq_subring_offset(64, 2), 128 + 2 * (384 + 64 * 64));
}

#[test]
fn a_region_is_laid_out_as_it_was() {
    let layout = RegionLayout::new(1000, 2, 1 << 20);
    assert_eq!((layout.events, layout.event_ring_len), (4096, 1024));
    assert_eq!((layout.event_slots, layout.doorbells), (12288, 77824));
    assert_eq!(
        (layout.doorbell.level0_words, layout.doorbell.level1_words),
        (16, 1)
    );
    assert_eq!((layout.doorbell.level0(), layout.doorbell.size()), (256, 384));
    assert_eq!((layout.queues, layout.size), (81920, 81920 + (1 << 20)));
    let large = DoorbellLayout::new(Handle::MAX_SLOTS);
    assert_eq!((large.level0_words, large.level1_words), (16384, 256));
    assert_eq!((large.level0(), large.size()), (2176, 2176 + 131072));
}

#[test]
fn a_header_describes_its_region_and_nothing_else_passes() {
    for slots in [1, 63, 64, 65, 4096, 5000, Handle::MAX_SLOTS] {
        let layout = RegionLayout::new(slots, 3, 10_000_000);
        let header = layout.header(7);
        assert_eq!(RegionLayout::from_header(&header), Some(layout));
        let later = RegionHeader {
            features: 1,
            ..header
        };
        assert_eq!(
            RegionLayout::from_header(&later),
            Some(layout),
            "features do not change the layout"
        );
    }
    let good = RegionLayout::new(100, 1, 4096).header(7);
    let bad = [
        RegionHeader { magic: 0, ..good },
        RegionHeader {
            abi_version: ABI_VERSION + 1,
            ..good
        },
        RegionHeader {
            header_size: 0,
            ..good
        },
        RegionHeader {
            region_size: 0,
            ..good
        },
        RegionHeader {
            region_size: u64::MAX,
            ..good
        },
        RegionHeader {
            region_size: good.region_size - 1,
            ..good
        },
        RegionHeader {
            queues_offset: 0,
            ..good
        },
        RegionHeader {
            queues_offset: u64::MAX,
            ..good
        },
        RegionHeader {
            events_offset: 0,
            ..good
        },
        RegionHeader {
            slots_offset: good.slots_offset + 64,
            ..good
        },
        RegionHeader {
            doorbells_offset: 0,
            ..good
        },
        RegionHeader {
            event_ring_len: 64,
            ..good
        },
        RegionHeader { slots: 0, ..good },
        RegionHeader {
            slots: Handle::MAX_SLOTS + 1,
            ..good
        },
        RegionHeader { slots: 300, ..good },
        RegionHeader { cores: 5000, ..good },
        RegionHeader {
            cores: u32::MAX,
            ..good
        },
        RegionHeader {
            wqe_size: 128,
            ..good
        },
        RegionHeader { cqe_size: 32, ..good },
        RegionHeader {
            event_slot_size: 32,
            ..good
        },
        RegionHeader {
            ring_indices_size: 12,
            ..good
        },
        RegionHeader {
            doorbell_block_size: 0,
            ..good
        },
        RegionHeader {
            reserved: [1; 32],
            ..good
        },
    ];
    for (i, header) in bad.iter().enumerate() {
        assert_eq!(RegionLayout::from_header(header), None, "header {i}: {header:?}");
    }
}

#[test]
fn a_handle_keeps_slot_and_generation_apart() {
    let handle = Handle::new(Handle::MAX_SLOTS - 1, 0xFFF);
    assert_eq!(
        (handle.slot(), handle.generation()),
        (Handle::MAX_SLOTS - 1, 0xFFF)
    );
    let cut = Handle::new(Handle::MAX_SLOTS, 0x1000);
    assert_eq!(cut.0, 0, "excess bits are cut off");
    assert_eq!(Handle::new(5, 1).0, 5 | 1 << 20);
}
