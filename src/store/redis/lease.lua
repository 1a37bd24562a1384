-- One call of a node for one caller's bucket: takes back, counts and hands out tokens of all its policies.
--
-- KEYS[1]  the bucket: a line a policy, `name g expiry unit level at epoch-end held-before held` or
--          `name c expiry used lease-end`. Lines that do not parse begin afresh.
-- ARGV     need, want, held, returned, acknowledged (tokens), then nine for each policy:
--          name `g` rate unit burst slack epoch tag debt, or name `c` window limit nodes poll stock tag debt.
-- Reply    now, grant, then six for each policy: left, ttl, tag, window end (s; GCRA 0), exhausted (0, 1), retry.
--
-- Times are microseconds of the server's clock, windows and their ends seconds. A GCRA level is counted in units, of
-- which a token has `unit` and a microsecond brings `rate`: whole numbers below 2^52, which a double holds exactly.
-- All policies grant the same number of tokens: the least that any of them has.

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local MOST = 4503599627370496
-- Of a full bucket's units, and of tokens; the rest of 2^52 is room for the server's time.
local FULL = 1125899906842624
local FIELDS = 9
local POLICIES = 16
local DAY = 86400

local function whole(text)
  local n = tonumber(text)
  if n and n >= 0 and n <= MOST and n == floor(n) then return n end
end

-- The days of a month in the proleptic Gregorian calendar; years begin in March, an era has 400.
local function month(second)
  local day = floor(second / DAY)
  local of_era = (day + 719468) % 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local index = floor((5 * of_year + 2) / 153)
  local first = floor((153 * index + 2) / 5)
  local length = floor((153 * (index + 1) + 2) / 5) - first
  if index == 11 then
    local civil = year + 1
    length = (civil % 4 == 0 and (civil % 100 ~= 0 or civil % 400 == 0)) and 29 or 28
  end
  local start = day - (of_year - first)
  return start * DAY, (start + length) * DAY
end

local function bounds(window, second)
  if window == 0 then return month(second) end
  local start = floor(second / window) * window
  return start, start + window
end

if #KEYS ~= 1 or #ARGV < 5 + FIELDS or (#ARGV - 5) % FIELDS ~= 0 or #ARGV > 5 + FIELDS * POLICIES then
  return redis.error_reply('ERR lease: wrong number of arguments')
end
local call = {}
for i = 1, 5 do
  call[i] = whole(ARGV[i])
  if not call[i] then return redis.error_reply('ERR lease: argument ' .. i .. ' is no whole number') end
end
local need, want, held, returned, acknowledged = call[1], call[2], call[3], call[4], call[5]

local policies, by_name = {}, {}
for at = 6, #ARGV, FIELDS do
  local p = { name = ARGV[at], kind = ARGV[at + 1] }
  for i = 1, 7 do
    p[i] = whole(ARGV[at + 1 + i])
    if not p[i] then return redis.error_reply('ERR lease: argument ' .. (at + 1 + i) .. ' is no whole number') end
  end
  p.tag, p.debt = p[6], p[7]
  local good
  if p.kind == 'g' then
    p.rate, p.unit, p.burst, p.slack, p.epoch = p[1], p[2], p[3], p[4], p[5]
    good = p.rate > 0 and p.unit > 0 and p.burst > 0 and p.epoch > 0 and p.epoch <= DAY * 1000000
      and (p.burst + p.slack) * p.unit <= FULL
  elseif p.kind == 'c' then
    p.window, p.limit, p.nodes, p.poll, p.stock = p[1], p[2], p[3], p[4], p[5]
    good = p.nodes > 0 and p.limit <= FULL and p.window <= DAY
  end
  if not good or #p.name > 63 or not string.match(p.name, '^[%l%d][%l%d._-]*$') or by_name[p.name] then
    return redis.error_reply('ERR lease: policy ' .. (#policies + 1) .. ' is none')
  end
  by_name[p.name] = p
  policies[#policies + 1] = p
end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local second = floor(now / 1000000)

-- What other policies of this caller left (a tier that changes is seen by one node after the other) stays until it is
-- worth nothing.
local others, last = {}, now
local stored = redis.pcall('GET', KEYS[1])
if type(stored) == 'string' and #stored <= 4096 then
  for line in string.gmatch(stored, '[^\n]+') do
    local words = {}
    for word in string.gmatch(line, '%S+') do words[#words + 1] = word end
    local numbers = {}
    for i = 3, #words do numbers[i - 2] = whole(words[i]) end
    if #numbers == #words - 2 and #numbers > 0 then
      local p = by_name[words[1]]
      if p and p.kind == words[2] and #numbers == (p.kind == 'g' and 7 or 3) then
        p.was = numbers
      elseif not p and #others < POLICIES and numbers[1] > now and numbers[1] < now + 32 * DAY * 1000000 then
        others[#others + 1] = line
        last = max(last, numbers[1])
      end
    end
  end
end

-- The level at `now`: at each epoch's end the tokens handed out before the last epoch stop counting as outstanding,
-- as no lease lives longer. What is outstanding leaves that much less room to refill to.
local function advance(p)
  local full = p.burst * p.unit
  local was = p.was
  p.level, p.at, p.ends, p.before, p.out = full, now, (floor(now / p.epoch) + 1) * p.epoch, 0, 0
  if not was or was[1] <= now then return end
  local level = was[3]
  -- The policy's numbers changed with the configuration.
  if was[2] ~= p.unit then level = floor(level / max(was[2], 1) * p.unit) end
  p.level = min(level, (p.burst + p.slack) * p.unit)
  p.before, p.out = was[6], was[7]
  -- A clock that went back: a little waits for itself, so that no time refills twice; more begins at this clock.
  if was[4] > now + p.epoch or was[5] > was[4] + 2 * p.epoch or was[5] < was[4] then return end
  p.at, p.ends = was[4], was[5]
  local function refill(to)
    local gain = p.rate * min(max(to - p.at, 0), ceil(full / p.rate))
    local room = min(p.burst, p.burst + p.slack - p.before - p.out) * p.unit
    p.level = max(p.level, min(p.level + gain, room))
    p.at = max(p.at, to)
  end
  for _ = 1, 2 do
    if p.ends <= now then
      refill(p.ends)
      p.before, p.out, p.ends = p.out, 0, p.ends + p.epoch
    end
  end
  refill(now)
  if p.ends <= now then p.ends = (floor(now / p.epoch) + 1) * p.epoch end
end

-- How long until there is a token, if nobody calls: `advance` ahead of time.
local function wait(p)
  local level, at, ends, before, out = p.level, p.at, p.ends, p.before, p.out
  while level < p.unit do
    local idle = before + out == 0
    local room = min(p.burst, p.burst + p.slack - before - out) * p.unit
    local there = at + ceil((p.unit - level) / p.rate)
    if idle or (room >= p.unit and there <= ends) then return there - now end
    level = max(level, min(level + p.rate * (ends - at), room))
    at, ends, before, out = ends, ends + p.epoch, out, 0
  end
  return at - now
end

local function settle_gcra(p)
  advance(p)
  if p.tag == p.ends then
    p.out = max(0, p.out - acknowledged)
  elseif p.tag == p.ends - p.epoch then
    p.before = max(0, p.before - acknowledged)
  end
  p.out = min(p.out + held, FULL)
  local outstanding = p.before + p.out
  p.level = min(p.level + returned * p.unit, max(0, p.burst + p.slack - outstanding) * p.unit)
  p.level = max(0, p.level - p.debt * p.unit)
  p.left = floor(p.level / p.unit)
  p.most = max(0, floor((p.burst / 2 + p.slack - outstanding) / 2))
end

local function settle_calendar(p)
  p.start, p.ends = bounds(p.window, second)
  p.used, p.leased = 0, 0
  local was = p.was
  -- A clock that went back keeps what was used: no jump gives quota away.
  if was and now < was[1] then
    p.used, p.leased = was[2], was[3]
  end
  -- A lease dies with its window, so what comes back from another one is worth nothing; a debt of unknown age counts.
  if p.tag == p.start then p.used = max(0, p.used - returned) end
  if p.tag == 0 or p.tag >= p.start then p.used = p.used + p.debt end
  p.used = min(p.used, FULL)
  p.ttl = p.ends * 1000000 - now
  p.leased = min(p.leased, p.ends * 1000000)
  p.left = max(0, p.limit - p.used)
end

for _, p in ipairs(policies) do
  if p.kind == 'g' then settle_gcra(p) else settle_calendar(p) end
  need = min(need, p.left)
end
local stock = want
for _, p in ipairs(policies) do
  if p.kind == 'g' then
    stock = min(stock, p.left - need, p.most)
  else
    stock = min(stock, floor((p.left - need) / (2 * p.nodes)))
  end
end
local grant = need + stock

local reply, lines = { now, grant }, {}
for _, p in ipairs(policies) do
  local expiry, ttl, tag, window_end, exhausted, retry
  if p.kind == 'g' then
    p.level = p.level - grant * p.unit
    p.out = p.out + grant
    p.left = floor(p.level / p.unit)
    ttl, tag, window_end = p.ends + p.epoch - now, p.ends, 0
    exhausted = p.level < p.unit
    retry = wait(p)
    expiry = p.ends + p.epoch + ceil(max(0, p.burst * p.unit - p.level) / p.rate)
    lines[#lines + 1] = string.format('%s g %.0f %.0f %.0f %.0f %.0f %.0f %.0f',
      p.name, expiry, p.unit, p.level, p.at, p.ends, p.before, p.out)
  else
    p.used = p.used + grant
    p.left = max(0, p.limit - p.used)
    if stock > 0 or held > 0 then p.leased = max(p.leased, now + min(p.ttl, p.stock)) end
    ttl, tag, window_end = p.ttl, p.start, p.ends
    exhausted = p.left < 1
    retry = p.leased > now and min(ttl, p.leased - now, p.poll) or ttl
    expiry = p.ends * 1000000
    lines[#lines + 1] = string.format('%s c %.0f %.0f %.0f', p.name, expiry, p.used, p.leased)
  end
  last = max(last, expiry)
  for _, n in ipairs({ p.left, ttl, tag, window_end, exhausted and 1 or 0, retry }) do reply[#reply + 1] = n end
end
for _, line in ipairs(others) do lines[#lines + 1] = line end
redis.call('SET', KEYS[1], table.concat(lines, '\n'), 'PX', string.format('%.0f', ceil((last - now) / 1000) + 1))
return reply
