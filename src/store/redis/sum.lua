-- What all nodes but one have used of a sum, which says what it has itself: the same said twice counts once.
-- KEYS: the sum, a hash by node. ARGV: the node, what it has used, how long the sum lives (ms).
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local others = 0
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do
  if fields[at] ~= ARGV[1] then others = others + (tonumber(fields[at + 1]) or 0) end
end
return string.format('%.0f', others)
