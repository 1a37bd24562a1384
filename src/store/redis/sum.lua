-- What all nodes but one have used of a sum, which says what it has itself: the same said twice counts once.
-- KEYS: the sum, a hash by node. ARGV: the node, what it has used, how long the sum lives (ms).
local MOST = 4503599627370496
-- Whoever can write to Redis can put anything there: it ends nobody's calls, as calls that fail are an outage.
local fields = redis.pcall('HGETALL', KEYS[1])
if fields.err then
  redis.call('DEL', KEYS[1])
  fields = {}
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local others = 0
for at = 1, #fields, 2 do
  local used = fields[at] ~= ARGV[1] and tonumber(fields[at + 1])
  if used and used > 0 then others = math.min(others + used, MOST) end
end
return string.format('%.0f', others)
