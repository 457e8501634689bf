-- Copyright (C) The nginx referral module authors
--
-- What the module does, in Lua: code from the shared dictionary (Redis on a
-- miss), judged for now; the same headers read, the same fields recorded, the
-- same cookie verified and signed; place by geoip2, id of version 7.  A timer
-- sends records to a stream of Redis in batches.  Written to be fast: nothing
-- is compiled or made twice that need not be, headers are read at once, HMAC
-- goes through states made once, randomness is drawn for many ids at a time.

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


-- a value in the protocol of Redis

local function bulk(value)
    return "$" .. #value .. "\r\n" .. value .. "\r\n"
end


local wanted = { "url", "state", "not_before", "expires", "version", "code_id",
                 "program_id", "referrer_id", "campaign" }
local hmget = ""

for _, name in ipairs(wanted) do
    hmget = hmget .. bulk(name)
end


local function fetch(code)
    local sock = connect()

    if not sock then
        return nil
    end

    sock:send("*" .. #wanted + 2 .. "\r\n$5\r\nHMGET\r\n"
        .. bulk("referral:code:" .. code) .. hmget)

    local line = sock:receive("*l")
    local value = {}

    for i = 1, tonumber(sub(line, 2)) do
        local n = tonumber(sub(sock:receive("*l"), 2))

        value[i] = n < 0 and "" or sub(sock:receive(n + 2), 1, n)
    end

    sock:setkeepalive()

    return value[1] ~= "" and concat(value, "\t") or nil
end


-- the part of a record that is the same for all clicks of a code is made once

local function parse(code, packed)
    local m = ngx.re.match(packed, "^([^\\t]*)\\t([^\\t]*)\\t(\\d*)\\t(\\d*)\\t"
        .. "(\\d*)\\t(\\d*)\\t(\\d*)\\t(\\d*)\\t([^\\t]*)$", "jo")

    if not m then
        return nil
    end

    return {
        url = m[1],
        off = m[2] ~= "" and m[2] ~= "active",
        not_before = tonumber(m[3]) or 0,
        expires = tonumber(m[4]) or math.huge,
        record = bulk("code") .. bulk(code) .. bulk("version") .. bulk(m[5])
            .. bulk("code_id") .. bulk(m[6]) .. bulk("program_id")
            .. bulk(m[7]) .. bulk("referrer_id") .. bulk(m[8])
            .. bulk("campaign") .. bulk(m[9]),
    }
end


local function lookup(code)
    local rule = near:get(code)

    if rule then
        return rule, "hit"
    end

    local cache = "hit"
    local packed = codes:get(code)

    if not packed then
        packed = fetch(code)

        if not packed then
            return nil
        end

        cache = "miss"
        codes:set(code, packed, 3600)
    end

    rule = parse(code, packed)

    if rule then
        near:set(code, rule, 1)
    end

    return rule, cache
end


local function judge(rule)
    local now = ngx.time()

    if rule.off then
        return "inactive", 410
    end

    if now < rule.not_before then
        return "early", 404
    end

    if now >= rule.expires then
        return "expired", 410
    end

    return "valid", 302
end


-- one command, ready to be sent

local fields = { "id", "type", "via", "verdict", "cache", "signals", "ip",
                 "country", "region", "city", "time_zone", "asn",
                 "user_agent", "referer_host", "host", "path", "args",
                 "language", "destination", "original" }
local names = {}

for i, name in ipairs(fields) do
    names[i] = bulk(name) .. "$"
end

local head = "*" .. (#fields + 6) * 2 + 6 .. "\r\n$4\r\nXADD\r\n"
    .. "$6\r\nclicks\r\n$6\r\nMAXLEN\r\n$1\r\n~\r\n$6\r\n100000\r\n"
    .. "$1\r\n*\r\n"

local parts = {}


local function record(rule, ...)
    parts[1] = head
    parts[2] = rule.record

    local n = 2

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
        return false
    end

    queued = queued + 1
    queue[queued] = concat(parts, "", 1, n)

    return true
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

    return from and string.lower(sub(url, from + 3, to)) or ""
end


-- what browsers and their users say, of all headers read at once

local function hints(headers)
    local text = ""

    if ngx.req.get_method() == "HEAD" then
        text = "head "
    end

    local purpose = rawget(headers, "sec-purpose")
        or rawget(headers, "purpose") or rawget(headers, "x-purpose")
        or rawget(headers, "x-moz")

    if purpose then
        if find(purpose, "^prefetch") then
            text = text .. "prefetch "

        elseif find(purpose, "^preview") then
            text = text .. "preview "
        end
    end

    if rawget(headers, "dnt") == "1" then
        text = text .. "dnt "
    end

    if rawget(headers, "sec-gpc") == "1" then
        return text .. "gpc no-consent", false
    end

    return text, true
end


-- first touch and last touch of the cookie that came, when it is ours

local function touches(cookie)
    local m = ngx.re.match(cookie, "(?:^|;\\s*)_ref="
        .. "(v1\\.k1\\.([\\w-]+\\.[0-9a-f]{32})"
        .. "\\.([\\w-]+)\\.([0-9a-f]{32})\\.)\\.([\\w-]{22})(?:;|$)", "jo")

    if m and mac(m[1]) == m[5] then
        return m[2], m[3], m[4]
    end
end


local function language_of(value)
    if not value then
        return ""
    end

    local comma = find(value, "[,;]")

    return comma and sub(value, 1, comma - 1) or value
end


-- arguments that are recorded, and those that go on to the destination

local recorded = { gclid = true, gad_source = true, gad_campaignid = true,
                   gbraid = true, wbraid = true, fbclid = true,
                   msclkid = true, ttclid = true, twclid = true,
                   li_fat_id = true, rdclid = true }


local function passed(args, url)
    local kept, utm = {}, {}

    for pair, name in string.gmatch(args, "(([^&=]+)=[^&]*)") do
        if sub(name, 1, 4) == "utm_" then
            kept[#kept + 1] = pair
            utm[#utm + 1] = pair

        elseif recorded[name] then
            kept[#kept + 1] = pair
        end
    end

    if #utm > 0 then
        url = url .. (find(url, "?", 1, true) and "&" or "?")
            .. concat(utm, "&")
    end

    return concat(kept, "&"), url
end


function _M.redirect()
    local uri = var.uri
    local code = upper(sub(uri, 4))

    if #code == 0 or #code > 64 or find(code, "[^A-Z0-9_-]") then
        return ngx.exit(404)
    end

    local rule, cache = lookup(code)

    if not rule then
        return ngx.exit(404)
    end

    local headers = ngx.req.get_headers(64)
    local signals, consent = hints(headers)
    local verdict, status = judge(rule)
    local args, url = var.args, rule.url
    local dest = rawget(headers, "sec-fetch-dest")
    local cookie = consent and rawget(headers, "cookie")
    local agent = rawget(headers, "user-agent") or ""
    local id = uuid7()
    local accepted, original, first, last, click

    if args then
        args, url = passed(args, url)
    end

    if cookie then
        first, last, click = touches(cookie)

        if last == code
           and ngx.now() * 1000 - tonumber(sub(click, 1, 12), 16) < 10000
        then
            original = click
            signals = signals .. "duplicate"
        end
    end

    if #agent > 512 then
        agent = sub(agent, 1, 512)
    end

    if not dest or dest == "document" then
        accepted = record(rule, id, "click", "redirect", verdict, cache,
            signals, consent and masked(var.remote_addr), var.geo_country,
            var.geo_region, var.geo_city, var.geo_time_zone, var.geo_asn,
            agent, host_of(rawget(headers, "referer")), var.host, uri, args,
            language_of(rawget(headers, "accept-language")), url, original)
    end

    local header = ngx.header

    header["Cache-Control"] = "no-store"

    if status ~= 302 then
        return ngx.exit(status)
    end

    if accepted and consent and not original then
        local touch = code .. "." .. id
        local token = "v1.k1." .. (first or touch) .. "." .. touch .. "."

        header["Set-Cookie"] = "_ref=" .. token .. "." .. mac(token)
            .. "; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax"
    end

    header["Location"] = url
    header["Content-Length"] = 0

    ngx.status = 302

    return ngx.send_headers()
end


function _M.start()
    assert(ngx.timer.every(0.1, flush))
end


return _M
