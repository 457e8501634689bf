-- Copyright (C) The nginx referral module authors
--
-- What the module does, in Lua: code from the shared dictionary (Redis on a
-- miss), place by geoip2, id of version 7, signed cookie, a record that a
-- timer sends to a stream of Redis in batches.  Written to be fast: nothing
-- is compiled or allocated twice that need not be, HMAC goes through states
-- made once, randomness is drawn for many ids at a time.

local ffi = require("ffi")
local base64 = require("ngx.base64")
local lrucache = require("resty.lrucache")

local ngx, var = ngx, ngx.var
local byte, sub, find = string.byte, string.sub, string.find
local upper, format = string.upper, string.format
local concat, floor = table.concat, math.floor
local new, copy, to_string = ffi.new, ffi.copy, ffi.string
local C = ffi.C

ffi.cdef([[
typedef struct {
    unsigned int   h[8];
    unsigned int   Nl, Nh;
    unsigned int   data[16];
    unsigned int   num, md_len;
} bench_sha256_t;

int SHA256_Init(bench_sha256_t *c);
int SHA256_Update(bench_sha256_t *c, const void *data, size_t len);
int SHA256_Final(unsigned char *md, bench_sha256_t *c);
int RAND_bytes(unsigned char *buf, int n);
]])

local BATCH = 256              -- commands in one write
local POOL = 1024              -- random bytes drawn at a time

local codes = ngx.shared.codes
local near = assert(lrucache.new(4096))
local redis_path = os.getenv("BENCH_REDIS")

local queue, queued = {}, 0
local _M = { dropped = 0 }


-- HMAC-SHA256 (RFC 2104) with the states after the key's block

local inner, outer = new("bench_sha256_t"), new("bench_sha256_t")
local state = new("bench_sha256_t")
local digest = new("unsigned char[32]")

do
    local key = "01234567890123456789012345678901"
    local ipad, opad = new("unsigned char[64]"), new("unsigned char[64]")

    for i = 0, 63 do
        local ch = byte(key, i + 1) or 0
        ipad[i] = bit.bxor(ch, 0x36)
        opad[i] = bit.bxor(ch, 0x5c)
    end

    C.SHA256_Init(inner)
    C.SHA256_Update(inner, ipad, 64)
    C.SHA256_Init(outer)
    C.SHA256_Update(outer, opad, 64)
end


local function mac(text)
    copy(state, inner, ffi.sizeof(state))
    C.SHA256_Update(state, text, #text)
    C.SHA256_Final(digest, state)
    copy(state, outer, ffi.sizeof(state))
    C.SHA256_Update(state, digest, 32)
    C.SHA256_Final(digest, state)

    return base64.encode_base64url(to_string(digest, 16))
end


-- UUID of version 7 as 32 hexadecimal digits

local pool, used = new("unsigned char[?]", POOL), POOL
local hex = {}

for i = 0, 255 do
    hex[i] = format("%02x", i)
end


local function uuid7()
    if used + 10 > POOL then
        C.RAND_bytes(pool, POOL)
        used = 0
    end

    local p, at = pool, used
    local ms = floor(ngx.now() * 1000)

    used = used + 10

    return format("%012x", ms)
        .. hex[bit.bor(0x70, bit.band(p[at], 0x0f))] .. hex[p[at + 1]]
        .. hex[bit.bor(0x80, bit.band(p[at + 2], 0x3f))] .. hex[p[at + 3]]
        .. hex[p[at + 4]] .. hex[p[at + 5]] .. hex[p[at + 6]]
        .. hex[p[at + 7]] .. hex[p[at + 8]] .. hex[p[at + 9]]
end


-- the rule of a code: this worker's memory, the dictionary, then Redis

local function connect()
    local sock = ngx.socket.tcp()

    sock:settimeout(1000)

    local ok, err = sock:connect(redis_path)

    return ok and sock, err
end


local function fetch(code)
    local sock = connect()

    if not sock then
        return nil
    end

    local key = "referral:code:" .. code

    sock:send("*6\r\n$5\r\nHMGET\r\n$" .. #key .. "\r\n" .. key .. "\r\n"
        .. "$3\r\nurl\r\n$7\r\ncode_id\r\n$10\r\nprogram_id\r\n"
        .. "$11\r\nreferrer_id\r\n")

    local line = sock:receive("*l")
    local value = {}

    for i = 1, tonumber(sub(line, 2)) do
        local n = tonumber(sub(sock:receive("*l"), 2))

        if n < 0 then
            sock:setkeepalive()
            return nil
        end

        value[i] = sub(sock:receive(n + 2), 1, n)
    end

    sock:setkeepalive()

    return concat(value, "\t")
end


local function lookup(code)
    local rule = near:get(code)

    if rule then
        return rule
    end

    local packed = codes:get(code)

    if not packed then
        packed = fetch(code)

        if not packed then
            return nil
        end

        codes:set(code, packed, 3600)
    end

    local m = ngx.re.match(packed, "^([^\\t]*)\\t(\\d*)\\t(\\d*)\\t(\\d*)$",
                           "jo")

    rule = { url = m[1], code_id = m[2], program_id = m[3],
             referrer_id = m[4] }
    near:set(code, rule, 1)

    return rule
end


-- one command, ready to be sent

local fields = { "id", "type", "verdict", "via", "code", "code_id",
                 "program_id", "referrer_id", "ip", "country", "region",
                 "city", "time_zone", "asn", "user_agent", "referer_host",
                 "host", "path", "language", "destination" }
local words = #fields * 2 + 6
local names = {}

for i, name in ipairs(fields) do
    names[i] = "$" .. #name .. "\r\n" .. name .. "\r\n$"
end

local head = "*" .. words .. "\r\n$4\r\nXADD\r\n$6\r\nclicks\r\n"
    .. "$6\r\nMAXLEN\r\n$1\r\n~\r\n$6\r\n100000\r\n$1\r\n*\r\n"

local parts = {}


local function record(...)
    parts[1] = head

    local n = 1

    for i = 1, #fields do
        local value = select(i, ...) or ""

        parts[n + 1] = names[i]
        parts[n + 2] = #value
        parts[n + 3] = "\r\n"
        parts[n + 4] = value
        parts[n + 5] = "\r\n"
        n = n + 5
    end

    if queued >= 100000 then
        _M.dropped = _M.dropped + 1
        return
    end

    queued = queued + 1
    queue[queued] = concat(parts, "", 1, n)
end


local function flush()
    if queued == 0 then
        return
    end

    local batch, n = queue, queued
    queue, queued = {}, 0

    local sock = connect()

    if not sock then
        _M.dropped = _M.dropped + n
        return
    end

    for first = 1, n, BATCH do
        local last = math.min(first + BATCH - 1, n)

        sock:send(concat(batch, "", first, last))

        for _ = first, last do
            sock:receive("*l")           -- $length
            sock:receive("*l")           -- the id
        end
    end

    sock:setkeepalive()
end


local function masked(address)
    local dot = find(address, "%d+$")
    return dot and sub(address, 1, dot - 1) .. "0" or ""
end


local function host_of(url)
    if not url then
        return ""
    end

    local from, to = find(url, "://[^/?#:]+")

    return from and sub(url, from + 3, to) or ""
end


function _M.redirect()
    local uri = var.uri
    local code = upper(sub(uri, 4))

    if #code == 0 or #code > 64 or find(code, "[^A-Z0-9_-]") then
        return ngx.exit(404)
    end

    local rule = lookup(code)

    if not rule then
        return ngx.exit(404)
    end

    local id = uuid7()
    local languages = var.http_accept_language or ""
    local comma = find(languages, "[,;]")

    record(id, "click", "valid", "redirect", code, rule.code_id,
           rule.program_id, rule.referrer_id, masked(var.remote_addr),
           var.geo_country, var.geo_region, var.geo_city, var.geo_time_zone,
           var.geo_asn, var.http_user_agent, host_of(var.http_referer),
           var.host, uri, comma and sub(languages, 1, comma - 1) or languages,
           rule.url)

    local touch = code .. "." .. id
    local token = "v1.k1." .. touch .. "." .. touch .. "."
    local header = ngx.header

    header["Set-Cookie"] = "_ref=" .. token .. "." .. mac(token)
        .. "; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax"
    header["Cache-Control"] = "no-store"
    header["Location"] = rule.url
    header["Content-Length"] = 0

    ngx.status = 302

    return ngx.send_headers()
end


function _M.start()
    assert(ngx.timer.every(0.1, flush))
end


return _M
