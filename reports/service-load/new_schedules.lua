-- wrk: every request asks for a schedule that nobody asked for before.
local layers = tonumber(os.getenv("LAYERS") or "32")

function init(args)
  math.randomseed(tonumber(os.getenv("SEED") or "1"))
end

function request()
  local alphas = {}
  for i = 1, layers do
    alphas[i] = string.format("%.9f", 2 + 2 * math.random())
  end
  local body = '{"source":{"alphas":[' .. table.concat(alphas, ",") .. ']},"budget":{"total":' .. (layers * 5) .. "}}"
  return wrk.format("POST", "/v1/allocations", { ["Content-Type"] = "application/json" }, body)
end
