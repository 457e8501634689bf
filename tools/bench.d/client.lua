-- Copyright (C) The nginx referral module authors
--
-- What wrk sends: one request of each client address, ready to be written, so
-- that the client costs little and all contenders the same.

local path = os.getenv("BENCH_PATH")
local suffix = os.getenv("BENCH_SUFFIX")
local codes = tonumber(os.getenv("BENCH_CODES"))
local pick = os.getenv("BENCH_PICK")

local head = " HTTP/1.1\r\nHost: shop.example.com\r\n"
    .. "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) "
    .. "Gecko/20100101 Firefox/128.0\r\n"
    .. "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n"
    .. "Accept-Language: de-CH,de;q=0.8,en;q=0.5\r\n"
    .. "Referer: https://social.example.net/post/1\r\n"
    .. "Sec-Fetch-Dest: document\r\n"
    .. "X-Real-IP: "

local addresses, requests = {}, {}
local first = tonumber(os.getenv("BENCH_FIRST"))
local n = first


-- Zipf with exponent 1, by the inverse of its integral: rank 1 is most likely

local function rank()
    if pick == "zipf" then
        return math.floor((codes + 1) ^ math.random()) - 1
    end

    if pick == "next" then
        n = n + 1
        return (n - 1) % codes
    end

    return math.random(0, codes - 1)
end


local function make(i)
    local target = path

    if pick ~= "none" then
        target = path .. "C" .. rank()
    end

    return "GET " .. target .. suffix .. head .. addresses[i] .. "\r\n\r\n"
end


function init(args)
    math.randomseed(1)

    for line in io.lines(os.getenv("BENCH_ADDRESSES")) do
        addresses[#addresses + 1] = line
    end

    if codes <= 10000 and pick ~= "next" then
        for i = 1, 2 * #addresses do
            requests[i] = make((i - 1) % #addresses + 1)
        end
    end
end


local at = first

function request()
    at = at + 1

    if #requests > 0 then
        return requests[at % #requests + 1]
    end

    return make(at % #addresses + 1)
end


function done(summary, latency)
    local errors = summary.errors

    io.write(string.format('{"requests":%d,"refused":%d,"seconds":%.6f,'
        .. '"p50_us":%d,"p99_us":%d,"p999_us":%d}\n',
        summary.requests,
        errors.status + errors.connect + errors.read + errors.write
        + errors.timeout,
        summary.duration / 1e6, latency:percentile(50),
        latency:percentile(99), latency:percentile(99.9)))
end
