// verbs-peer PORT: does as it is told over a virtio-serial port, with libibverbs: a line per command, a line per
// answer, "ok ..." or "error ...". It knows nothing of what is tested; the harness on the other side does.
//
// There is one memory region, one CQ, one QP at a time. Memory is named by offsets in the region.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <infiniband/verbs.h>

enum { GUARD = 0xA5, MAX_SGE = 4, GRH = 40 };

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_comp_channel *channel;
static struct ibv_cq *cq;
static struct ibv_srq *srq;
static struct ibv_qp *qp;
static struct ibv_ah *ah;
static struct ibv_mr *mr;
static uint8_t *memory;
static size_t memory_len;
static int gid_index;
static uint32_t remote_qpn, qkey;
static FILE *out;

static bool answer(const char *format, ...) {
	va_list list;
	va_start(list, format);
	vfprintf(out, format, list);
	va_end(list);
	fputc('\n', out);
	fflush(out);
	return true;
}

// Every failed call ends here, with its errno.
static bool failed(const char *what, int error) { return answer("error %s: %s", what, strerror(error)); }

static bool malformed(void) { return answer("error malformed command"); }

// The same numbers as the harness's generator, SplitMix64 (rnic_tests::probe::Rng).
static uint64_t next(uint64_t *state) {
	uint64_t z = *state += 0x9E3779B97F4A7C15;
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
	return z ^ (z >> 31);
}

static void pattern(uint8_t *to, size_t len, uint64_t seed) {
	uint64_t state = 0x9E3779B97F4A7C15 ^ (seed * 0xD6E8FEB86659FD93);
	next(&state);
	for (size_t at = 0; at < len; at += 8) {
		uint64_t word = next(&state);
		memcpy(to + at, &word, len - at < 8 ? len - at : 8);
	}
}

static bool inside(size_t offset, size_t len) { return offset <= memory_len && len <= memory_len - offset; }

static void close_all(void) {
	if (ah) ibv_destroy_ah(ah);
	if (qp) ibv_destroy_qp(qp);
	if (srq) ibv_destroy_srq(srq);
	if (cq) ibv_destroy_cq(cq);
	if (channel) ibv_destroy_comp_channel(channel);
	if (mr) ibv_dereg_mr(mr);
	if (pd) ibv_dealloc_pd(pd);
	if (context) ibv_close_device(context);
	free(memory);
	ah = NULL, qp = NULL, srq = NULL, cq = NULL, channel = NULL, mr = NULL, pd = NULL, context = NULL, memory = NULL;
	memory_len = 0;
}

static bool parse_gid(const char *hex, union ibv_gid *gid) {
	if (strlen(hex) != 32) return false;
	for (int i = 0; i < 16; i++)
		if (sscanf(hex + 2 * i, "%2hhx", &gid->raw[i]) != 1) return false;
	return true;
}

// open GID BYTES DEPTH -> ok ADDRESS RKEY: everything but the QP, on the device with that GID.
static bool open_device(const char *line) {
	char hex[33];
	size_t bytes;
	int depth;
	union ibv_gid wanted, gid;
	if (sscanf(line, "%32s %zu %d", hex, &bytes, &depth) != 3 || !parse_gid(hex, &wanted)) return malformed();
	close_all();
	struct ibv_device **list = ibv_get_device_list(NULL);
	if (!list || !list[0]) return answer("error no RDMA device");
	context = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	if (!context) return failed("ibv_open_device", errno);
	for (gid_index = 0;; gid_index++) {
		if (ibv_query_gid(context, 1, gid_index, &gid)) return answer("error no GID %s", hex);
		if (!memcmp(&gid, &wanted, sizeof gid)) break;
	}
	if (posix_memalign((void **)&memory, 4096, bytes)) return failed("posix_memalign", ENOMEM);
	memory_len = bytes;
	memset(memory, GUARD, bytes);
	if (!(pd = ibv_alloc_pd(context))) return failed("ibv_alloc_pd", errno);
	mr = ibv_reg_mr(pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
	                                       IBV_ACCESS_REMOTE_ATOMIC);
	if (!mr) return failed("ibv_reg_mr", errno);
	if (!(channel = ibv_create_comp_channel(context))) return failed("ibv_create_comp_channel", errno);
	if (!(cq = ibv_create_cq(context, 2 * depth, NULL, channel, 0))) return failed("ibv_create_cq", errno);
	return answer("ok %" PRIu64 " %" PRIu32, (uint64_t)(uintptr_t)memory, mr->rkey);
}

// create_qp TYPE(rc|uc|ud) DEPTH SRQ(0|1) -> ok QPN: a QP in INIT.
static bool create_qp(const char *line) {
	char type[3];
	int depth, shared;
	if (sscanf(line, "%2s %d %d", type, &depth, &shared) != 3 || !context) return malformed();
	if (qp) ibv_destroy_qp(qp);
	qp = NULL;
	if (srq) ibv_destroy_srq(srq);
	srq = NULL;
	if (shared) {
		struct ibv_srq_init_attr init = {.attr = {.max_wr = depth, .max_sge = MAX_SGE}};
		if (!(srq = ibv_create_srq(pd, &init))) return failed("ibv_create_srq", errno);
	}
	struct ibv_qp_init_attr init = {
		.send_cq = cq,
		.recv_cq = cq,
		.srq = srq,
		.cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = MAX_SGE, .max_recv_sge = MAX_SGE},
		.qp_type = !strcmp(type, "rc") ? IBV_QPT_RC : !strcmp(type, "uc") ? IBV_QPT_UC : IBV_QPT_UD,
	};
	if (!(qp = ibv_create_qp(pd, &init))) return failed("ibv_create_qp", errno);
	bool ud = qp->qp_type == IBV_QPT_UD;
	qkey = 0x11111111;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = 1,
		.qkey = qkey,
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE |
		                   (qp->qp_type == IBV_QPT_RC ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC : 0),
	};
	int error = ibv_modify_qp(qp, &attr,
	                          IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
	                              (ud ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS));
	if (error) return failed("ibv_modify_qp to INIT", error);
	return answer("ok %" PRIu32, qp->qp_num);
}

// connect QPN GID RQ_PSN SQ_PSN MTU(enum ibv_mtu) TIMEOUT RETRY_CNT -> ok: to RTR and RTS.
static bool connect_qp(const char *line) {
	char hex[33];
	int mtu, timeout, retry_cnt;
	uint32_t rq_psn, sq_psn;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTR,
		.ah_attr = {.is_global = 1, .port_num = 1, .grh = {.hop_limit = 64, .sgid_index = gid_index}},
		.max_dest_rd_atomic = 16,
		.min_rnr_timer = 12,
	};
	if (sscanf(line, "%" SCNu32 " %32s %" SCNu32 " %" SCNu32 " %d %d %d", &remote_qpn, hex, &rq_psn, &sq_psn, &mtu,
	           &timeout, &retry_cnt) != 7 ||
	    !parse_gid(hex, &attr.ah_attr.grh.dgid) || !qp)
		return malformed();
	attr.dest_qp_num = remote_qpn;
	attr.rq_psn = rq_psn;
	attr.path_mtu = mtu;
	int mask = IBV_QP_STATE;
	if (qp->qp_type != IBV_QPT_UD) mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
	if (qp->qp_type == IBV_QPT_RC) mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
	int error = ibv_modify_qp(qp, &attr, mask);
	if (error) return failed("ibv_modify_qp to RTR", error);
	if (ah) ibv_destroy_ah(ah);
	ah = NULL;
	if (qp->qp_type == IBV_QPT_UD && !(ah = ibv_create_ah(pd, &attr.ah_attr))) return failed("ibv_create_ah", errno);
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS,
		.sq_psn = sq_psn,
		.timeout = timeout,
		.retry_cnt = retry_cnt,
		.rnr_retry = 7,
		.max_rd_atomic = 16,
	};
	mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
	if (qp->qp_type == IBV_QPT_RC)
		mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
	error = ibv_modify_qp(qp, &attr, mask);
	if (error) return failed("ibv_modify_qp to RTS", error);
	return answer("ok");
}

// fill|check OFFSET SIZE AT LEN SEED: guard bytes, but for LEN bytes of the pattern at OFFSET + AT.
static bool image(const char *line, bool check) {
	size_t offset, size, at, len;
	uint64_t seed;
	if (sscanf(line, "%zu %zu %zu %zu %" SCNu64, &offset, &size, &at, &len, &seed) != 5 || !inside(offset, size) ||
	    at > size || len > size - at)
		return malformed();
	uint8_t *wanted = check ? malloc(size) : memory + offset;
	if (!wanted) return failed("malloc", ENOMEM);
	memset(wanted, GUARD, size);
	pattern(wanted + at, len, seed);
	if (!check) return answer("ok");
	const uint8_t *found = memory + offset;
	size_t wrong = 0, first = 0;
	for (size_t i = size; i-- > 0;)
		if (wanted[i] != found[i]) wrong++, first = i;
	uint8_t there = found[first], due = wanted[first];
	free(wanted);
	if (!wrong) return answer("ok");
	return answer("error %zu bytes differ, the first at %zd of %zu: 0x%02x instead of 0x%02x", wrong,
	              (ssize_t)first - (ssize_t)at, len, there, due);
}

// poke OFFSET VALUE -> ok, peek OFFSET -> ok VALUE: an aligned 64-bit word in host order.
static bool word(const char *line, bool write) {
	size_t offset;
	uint64_t value = 0;
	if (sscanf(line, "%zu %" SCNu64, &offset, &value) != 1 + write || !inside(offset, 8) || offset % 8)
		return malformed();
	volatile uint64_t *place = (volatile uint64_t *)(memory + offset);
	if (!write) return answer("ok %" PRIu64, *place);
	*place = value;
	return answer("ok");
}

// LEN bytes at OFFSET in COUNT entries; tells how many it took.
static int gather(struct ibv_sge *sge, size_t offset, size_t len, size_t count) {
	size_t piece = count ? (len + count - 1) / count : 0;
	int n = 0;
	for (size_t at = 0; at < len && n < MAX_SGE; at += piece) {
		size_t part = len - at < piece ? len - at : piece;
		sge[n++] = (struct ibv_sge){(uintptr_t)(memory + offset + at), part, mr->lkey};
	}
	return n;
}

// post_recv WR_ID OFFSET LEN SGES -> ok
static bool post_recv(const char *line) {
	struct ibv_sge sge[MAX_SGE];
	struct ibv_recv_wr wr = {.sg_list = sge}, *bad;
	size_t offset, len, sges;
	if (sscanf(line, "%" SCNu64 " %zu %zu %zu", &wr.wr_id, &offset, &len, &sges) != 4 || !inside(offset, len) || !qp)
		return malformed();
	wr.num_sge = gather(sge, offset, len, sges);
	int error = srq ? ibv_post_srq_recv(srq, &wr, &bad) : ibv_post_recv(qp, &wr, &bad);
	return error ? failed("ibv_post_recv", error) : answer("ok");
}

// post_send OPCODE(enum ibv_wr_opcode) WR_ID OFFSET LEN SGES REMOTE_ADDR RKEY IMM COMPARE_ADD SWAP -> ok
static bool post_send(const char *line) {
	struct ibv_sge sge[MAX_SGE];
	struct ibv_send_wr wr = {.sg_list = sge, .send_flags = IBV_SEND_SIGNALED}, *bad;
	size_t offset, len, sges;
	uint64_t addr, compare_add, swap;
	uint32_t rkey, imm;
	int opcode;
	if (sscanf(line, "%d %" SCNu64 " %zu %zu %zu %" SCNu64 " %" SCNu32 " %" SCNu32 " %" SCNu64 " %" SCNu64, &opcode,
	           &wr.wr_id, &offset, &len, &sges, &addr, &rkey, &imm, &compare_add, &swap) != 10 ||
	    !inside(offset, len) || !qp)
		return malformed();
	wr.opcode = opcode;
	wr.num_sge = gather(sge, offset, len, sges);
	wr.imm_data = htobe32(imm);
	if (opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
		wr.wr.atomic.remote_addr = addr, wr.wr.atomic.rkey = rkey;
		wr.wr.atomic.compare_add = compare_add, wr.wr.atomic.swap = swap;
	} else if (qp->qp_type == IBV_QPT_UD) {
		wr.wr.ud.ah = ah, wr.wr.ud.remote_qpn = remote_qpn, wr.wr.ud.remote_qkey = qkey;
	} else {
		wr.wr.rdma.remote_addr = addr, wr.wr.rdma.rkey = rkey;
	}
	int error = ibv_post_send(qp, &wr, &bad);
	return error ? failed("ibv_post_send", error) : answer("ok");
}

static int64_t now_ms(void) {
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

// poll COUNT MS -> ok {WR_ID,STATUS,OPCODE,BYTE_LEN,FLAGS,IMM}...: what completes within the time, up to COUNT.
static bool poll_completions(const char *line) {
	int count, ms, got = 0;
	if (sscanf(line, "%d %d", &count, &ms) != 2 || !cq) return malformed();
	int64_t end = now_ms() + ms;
	fprintf(out, "ok");
	while (got < count) {
		struct ibv_wc wc;
		int error = ibv_req_notify_cq(cq, 0), n;
		while (!error && got < count && (n = ibv_poll_cq(cq, 1, &wc)) != 0) {
			if (n < 0) { error = EIO; break; }
			fprintf(out, " %" PRIu64 ",%d,%d,%" PRIu32 ",%u,%" PRIu32, wc.wr_id, wc.status, wc.opcode, wc.byte_len,
			        (unsigned)wc.wc_flags, be32toh(wc.imm_data));
			got++;
		}
		int64_t left = end - now_ms();
		if (error || left <= 0) break;
		if (got == count) break;
		struct pollfd fd = {.fd = channel->fd, .events = POLLIN};
		if (poll(&fd, 1, left) == 1) {
			struct ibv_cq *which;
			void *unused;
			if (!ibv_get_cq_event(channel, &which, &unused)) ibv_ack_cq_events(which, 1);
		}
	}
	return answer("");
}

static bool obey(char *line) {
	line[strcspn(line, "\n")] = 0;
	char *rest = strchr(line, ' ');
	if (rest) *rest++ = 0; else rest = line + strlen(line);
	if (!strcmp(line, "sync")) return answer("ok sync %s", rest);
	if (!strcmp(line, "open")) return open_device(rest);
	if (!strcmp(line, "create_qp")) return create_qp(rest);
	if (!strcmp(line, "connect")) return connect_qp(rest);
	if (!strcmp(line, "fill")) return image(rest, false);
	if (!strcmp(line, "check")) return image(rest, true);
	if (!strcmp(line, "poke")) return word(rest, true);
	if (!strcmp(line, "peek")) return word(rest, false);
	if (!strcmp(line, "post_recv")) return post_recv(rest);
	if (!strcmp(line, "post_send")) return post_send(rest);
	if (!strcmp(line, "poll")) return poll_completions(rest);
	if (!strcmp(line, "close")) return close_all(), answer("ok");
	return answer("error unknown command %s", line);
}

int main(int argc, char **argv) {
	if (argc != 2) return 2;
	// A port can be opened once at a time.
	int fd = open(argv[1], O_RDWR);
	FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
	out = in ? fdopen(dup(fd), "w") : NULL;
	if (!out) return perror(argv[1]), 1;
	char line[512];
	for (;;) {
		if (fgets(line, sizeof line, in)) {
			obey(line);
		} else {
			// Nobody is at the other end.
			clearerr(in);
			usleep(50000);
		}
	}
}
